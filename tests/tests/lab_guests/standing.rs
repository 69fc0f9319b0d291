//! Faults that stand for as long as nobody mends them, one of every kind; and that they fill no log.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use system_tests::lab::{Lab, kernel_vm, tiny_vm, web::Page};

use super::bad_input::{SHARED, disk, domain, gone, sh};

const DISKS: [&str; 8] = [
    "stands-parent",
    "stands-link",
    "stands-missing",
    "stands-short",
    "stands-url",
    "stands-404",
    "stands-away",
    "stands-coveted",
];
const VMS: [&str; 6] =
    ["stands-net", "stands-owner", "stands-envious", "stands-mac", "stands-mac-2", "stands-disk"];

/// The faults, made.
pub struct Standing<'a>(&'a Lab);

impl<'a> Standing<'a> {
    /// Makes them; each has been said on its object when this returns.
    pub fn make(lab: &'a Lab) -> Result<Self> {
        gone(lab, "vvm", &VMS)?;
        gone(lab, "vdisk", &DISKS)?;
        gone(lab, "vsd", &["stands"])?;
        let web = lab.serve("host1", BTreeMap::from([("page".to_owned(), Page::Bytes(Vec::new()))]))?;
        allow(lab, Some(&web))?;
        sh(
            lab,
            &format!(
                "cd {SHARED} && rm -rf stands && mkdir stands && cd files && ln -sfn /etc/shadow stands.img && head -c 50 tiny.qcow2 > stands.qcow2"
            ),
        )?;
        lab.apply(&domain("stands"))?;
        lab.until_true("vsd", "stands", "Ready")?;
        // What an unmounted file system looks like.
        sh(lab, &format!("cd {SHARED} && mv stands stands.mounted && mkdir stands"))?;
        let sources = [
            ("stands-parent", "shared", "{file: {path: ../../etc/shadow}}".to_owned(), "leaves the domain"),
            ("stands-link", "shared", "{file: {path: stands.img}}".to_owned(), "stands.img"),
            ("stands-missing", "shared", "{file: {path: nothing.qcow2}}".to_owned(), "nothing.qcow2"),
            ("stands-short", "shared", "{file: {path: stands.qcow2}}".to_owned(), "cut short"),
            (
                "stands-url",
                "shared",
                "{http: {url: \"https://127.0.0.1/disk\"}}".to_owned(),
                "imports.allowedUrls",
            ),
            ("stands-404", "shared", format!("{{http: {{url: \"{web}none\"}}}}"), "404"),
            ("stands-away", "stands", "{blank: {}}".to_owned(), "stands"),
        ];
        let mac = "  interfaces: [{name: eth0, network: nat, macAddress: \"02:76:00:aa:bb:dd\"}]\n";
        let coveted = "  disks: [{name: data, disk: {name: stands-coveted}}]\n";
        lab.apply(&disk("stands-coveted", "shared", "{blank: {}}"))?;
        lab.apply(&kernel_vm("stands-owner", coveted))?;
        lab.apply(&kernel_vm("stands-mac", mac))?;
        lab.until_running("stands-owner")?;
        lab.until_running("stands-mac")?;
        lab.apply(
            &sources.iter().map(|(name, domain, source, _)| disk(name, domain, source)).collect::<String>(),
        )?;
        lab.apply(&kernel_vm("stands-envious", coveted))?;
        lab.apply(&kernel_vm("stands-mac-2", mac))?;
        lab.apply(&kernel_vm("stands-net", "  interfaces: [{name: eth0, network: never}]\n"))?;
        lab.apply(&tiny_vm("stands-disk", "").replace("path: tiny.qcow2", "path: stands.img"))?;
        for (name, _, _, word) in &sources {
            lab.until_said("vdisk", name, "Ready", &[word])?;
        }
        for (name, word) in [
            ("stands-envious", "stands-owner"),
            ("stands-mac-2", "stands-mac"),
            ("stands-net", "never"),
            ("stands-disk", "stands-disk-root"),
        ] {
            lab.until_said("vvm", name, "Ready", &[word])?;
        }
        Ok(Self(lab))
    }

    /// Mends them.
    pub fn remove(self) -> Result<()> {
        let lab = self.0;
        sh(lab, &format!("cd {SHARED} && rmdir stands && mv stands.mounted stands"))?;
        gone(lab, "vvm", &VMS)?;
        gone(lab, "vdisk", &DISKS)?;
        gone(lab, "vsd", &["stands"])?;
        allow(lab, None)?;
        sh(lab, &format!("cd {SHARED} && rm -rf stands files/stands.img files/stands.qcow2")).map(drop)
    }
}

fn allow(lab: &Lab, web: Option<&str>) -> Result<()> {
    let urls = web.map(|web| [web]);
    let patch = json!({"spec": {"imports": {"allowedUrls": urls}}});
    lab.kubectl(["patch", "vsd", "shared", "--type=merge", "-p", &patch.to_string()]).map(drop)
}

/// Standing faults are told once, not again and again: no log grows by more than a little while nothing happens.
pub fn floods_nothing(lab: &Lab) -> Result<()> {
    const QUIET: Duration = Duration::from_secs(20);
    const BOUND: u64 = 20_000;
    let before: BTreeMap<_, _> = lab.logs()?.into_iter().collect();
    let deadline = std::time::Instant::now() + QUIET;
    loop {
        for (path, length) in lab.logs()? {
            let grown = length.saturating_sub(before.get(&path).copied().unwrap_or_default());
            ensure!(grown < BOUND, "{} grew by {grown} bytes within {QUIET:?}", path.display());
        }
        if std::time::Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
