//! What cannot be done, tried on real hosts: said in words on the object, nothing lost, nothing broken for others.

use std::{collections::BTreeMap, fs, time::Duration};

use super::standing::{Standing, floods_nothing};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use system_tests::lab::{Lab, alone, condition, kernel_vm, shared, tiny_vm, web::Page};

pub(super) const SHARED: &str = "/srv/vireo/shared";

pub(super) fn disk(name: &str, domain: &str, source: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1\nkind: Disk\nmetadata: {{name: {name}, namespace: default}}\nspec: {{storageDomain: {domain}, size: 64Mi, source: {source}}}\n---\n"
    )
}

pub(super) fn domain(name: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1\nkind: StorageDomain\nmetadata: {{name: {name}}}\nspec: {{directory: {{path: {SHARED}/{name}, shared: true}}, thresholds: {{blockFreeBytes: 512Mi}}}}\n---\n"
    )
}

pub(super) fn gone(lab: &Lab, kind: &str, names: &[&str]) -> Result<()> {
    let mut args = vec!["delete", kind, "--ignore-not-found", "--timeout=120s"];
    args.extend(names);
    lab.kubectl(args)?;
    Ok(())
}

pub(super) fn sh(lab: &Lab, script: &str) -> Result<String> {
    lab.exec("host1", ["sh", "-ec", script])
}

fn uid(object: &Value) -> Result<String> {
    Ok(object["metadata"]["uid"].as_str().context("a uid")?.to_owned())
}

#[test]
fn lab_sources_that_must_not_be_read_are_refused_in_words() -> Result<()> {
    let lab = &*shared()?;
    sh(
        lab,
        &format!(
            "cd {SHARED}/files
            ln -sfn /etc/shadow link.img
            ln -sfn /etc etc
            rm -f backing.qcow2 lying.qcow2 larger.qcow2 short.qcow2
            qemu-img create -q -f qcow2 -F raw -b /etc/shadow backing.qcow2 64M
            qemu-img create -q -f qcow2 lying.qcow2 64M
            printf '\\000\\377\\377\\377' | dd of=lying.qcow2 bs=1 seek=36 conv=notrunc status=none
            qemu-img create -q -f qcow2 larger.qcow2 1G
            head -c 50 tiny.qcow2 > short.qcow2"
        ),
    )?;
    // Name, source, reason, words of the message.
    let rows: &[(&str, &str, &str, &[&str])] = &[
        (
            "bad-parent",
            "{file: {path: ../../../../etc/shadow}}",
            "Refused",
            &["spec.source.file.path", "../../../../etc/shadow", "leaves the domain", "relative to"],
        ),
        (
            "bad-absolute",
            "{file: {path: /etc/shadow}}",
            "Refused",
            &["spec.source.file.path", "/etc/shadow", "relative"],
        ),
        ("bad-link", "{file: {path: link.img}}", "PathRefused", &["spec.source.file.path", "link.img"]),
        (
            "bad-link-folder",
            "{file: {path: etc/shadow}}",
            "PathRefused",
            &["spec.source.file.path", "etc/shadow"],
        ),
        (
            "bad-missing",
            "{file: {path: nothing.qcow2}}",
            "PathRefused",
            &["spec.source.file.path", "nothing.qcow2", "vireo-node import"],
        ),
        (
            "bad-loopback",
            "{http: {url: \"https://127.0.0.1/disk.qcow2\"}}",
            "UrlRefused",
            &["spec.source.http.url", "127.0.0.1", "imports.allowedUrls"],
        ),
        (
            "bad-metadata",
            "{http: {url: \"https://169.254.169.254/latest\"}}",
            "UrlRefused",
            &["169.254.169.254", "private address", "imports.allowedUrls"],
        ),
        (
            "bad-name",
            "{http: {url: \"https://localhost/disk.qcow2\"}}",
            "UrlRefused",
            &["localhost", "private address", "imports.allowedUrls"],
        ),
        (
            "bad-http",
            "{http: {url: \"http://images.example/disk.qcow2\"}}",
            "UrlRefused",
            &["http://images.example/disk.qcow2", "https", "imports.allowedUrls"],
        ),
        (
            "bad-backing",
            "{file: {path: backing.qcow2}}",
            "ImageRefused",
            &["spec.source.file.path", "backing.qcow2", "backing file", "/etc/shadow", "qemu-img convert"],
        ),
        (
            "bad-lying",
            "{file: {path: lying.qcow2}}",
            "ImageRefused",
            &["spec.source.file.path", "lying.qcow2", "header is not consistent"],
        ),
        ("bad-larger", "{file: {path: larger.qcow2}}", "ImageTooLarge", &["1Gi", "spec.size", "64Mi"]),
        (
            "bad-short",
            "{file: {path: short.qcow2}}",
            "ImageRefused",
            &["spec.source.file.path", "short.qcow2", "cut short"],
        ),
    ];
    let names: Vec<&str> = rows.iter().map(|(name, ..)| *name).collect();
    gone(lab, "vdisk", &names)?;
    lab.apply(&rows.iter().map(|(name, source, ..)| disk(name, "shared", source)).collect::<String>())?;
    for (name, _, reason, words) in rows {
        let object = lab.until_said("vdisk", name, "Ready", words)?;
        let said = condition(&object, "Ready").context("Ready")?;
        ensure!(said["reason"] == *reason, "{name}: {said}");
        ensure!(object["status"].get("volume").is_none(), "{name} has a volume: {}", object["status"]);
        let left = sh(lab, &format!("ls {SHARED}/volumes | grep {} || true", uid(&object)?))?;
        ensure!(left.lines().all(|file| file.ends_with(".json")), "{name} left {left}");
    }
    // A VM that wants such a disk says so: at once where the words tell, else by naming the disk it waits for.
    let wanting =
        |path: &str| tiny_vm("on-bad-disk", "").replace("path: tiny.qcow2", &format!("path: {path}"));
    lab.delete_vm("on-bad-disk")?;
    lab.apply(&wanting("../tiny.qcow2"))?;
    let words = ["spec.disks[0].template.source.file.path", "../tiny.qcow2", "leaves the domain"];
    lab.until_said("vvm", "on-bad-disk", "Ready", &words)?;
    lab.delete_vm("on-bad-disk")?;
    lab.apply(&wanting("link.img"))?;
    lab.until_said("vvm", "on-bad-disk", "Ready", &["on-bad-disk-root"])?;
    lab.delete_vm("on-bad-disk")?;
    gone(lab, "vdisk", &names)?;
    sh(
        lab,
        &format!("cd {SHARED}/files && rm link.img etc backing.qcow2 lying.qcow2 larger.qcow2 short.qcow2"),
    )?;
    lab.nothing_panicked()
}

#[test]
fn lab_a_wrong_digest_and_a_way_out_of_the_list_are_refused() -> Result<()> {
    let lab = &*alone()?;
    let pages = BTreeMap::from([
        ("images/disk.raw".to_owned(), Page::Bytes(vec![7; 1 << 20])),
        ("images/away".to_owned(), Page::Redirect("https://127.0.0.1/disk.raw".into())),
        ("images/page.raw".to_owned(), Page::Bytes(b"<!DOCTYPE html><html>log in first</html>".to_vec())),
    ]);
    let web = lab.serve("host1", pages)?;
    lab.kubectl([
        "patch",
        "vsd",
        "shared",
        "--type=merge",
        "-p",
        &json!({"spec": {"imports": {"allowedUrls": [format!("{web}images/")]}}}).to_string(),
    ])?;
    let rows: &[(&str, String, &str, &[&str])] = &[
        (
            "web-digest",
            format!("{{http: {{url: \"{web}images/disk.raw\", checksum: \"sha256:{}\"}}}}", "0".repeat(64)),
            "DigestMismatch",
            &[
                "spec.source.http.checksum",
                "sha256:0000",
                "sha256:51b12eb838732b786b4d45c660a974ddf3860ae09084fd293fa6e5df46581a6c",
            ],
        ),
        (
            "web-away",
            format!("{{http: {{url: \"{web}images/away\"}}}}"),
            "UrlRefused",
            &["https://127.0.0.1/disk.raw", "imports.allowedUrls"],
        ),
        (
            "web-page",
            format!("{{http: {{url: \"{web}images/page.raw\"}}}}"),
            "ImageRefused",
            &["web page", "check the URL"],
        ),
        (
            "web-missing",
            format!("{{http: {{url: \"{web}images/none\"}}}}"),
            "ImportFailed",
            &["404", "images/none", "check the URL"],
        ),
        (
            "web-unlisted",
            format!("{{http: {{url: \"{web}other/disk.raw\"}}}}"),
            "UrlRefused",
            &["other/disk.raw", "imports.allowedUrls"],
        ),
    ];
    let names: Vec<&str> = rows.iter().map(|(name, ..)| *name).collect();
    gone(lab, "vdisk", &names)?;
    lab.apply(&rows.iter().map(|(name, source, ..)| disk(name, "shared", source)).collect::<String>())?;
    for (name, _, reason, words) in rows {
        let object = lab.until_said("vdisk", name, "Ready", words)?;
        ensure!(
            condition(&object, "Ready").is_some_and(|c| c["reason"] == *reason),
            "{name}: {}",
            object["status"]
        );
        ensure!(object["status"].get("volume").is_none(), "{name} has a volume: {}", object["status"]);
    }
    lab.kubectl([
        "patch",
        "vsd",
        "shared",
        "--type=merge",
        "-p",
        "{\"spec\":{\"imports\":{\"allowedUrls\":null}}}",
    ])?;
    gone(lab, "vdisk", &names)?;
    lab.nothing_panicked()
}

#[test]
fn lab_what_a_vm_lacks_is_said_and_it_starts_when_it_is_there() -> Result<()> {
    let lab = &*shared()?;
    let vms = ["lacks-net", "owner", "envious", "first-mac", "second-mac"];
    gone(lab, "vvm", &vms)?;
    gone(lab, "vdisk", &["coveted"])?;
    gone(lab, "network", &["later"])?;
    lab.apply(&disk("coveted", "shared", "{blank: {}}"))?;
    lab.apply(&kernel_vm("owner", "  disks: [{name: data, disk: {name: coveted}}]\n"))?;
    lab.apply(&kernel_vm(
        "first-mac",
        "  interfaces: [{name: eth0, network: nat, macAddress: \"02:76:00:aa:bb:cc\"}]\n",
    ))?;
    lab.until_running("owner")?;
    lab.until_running("first-mac")?;
    let (owner, first) = (lab.qemu_pid("owner")?, lab.qemu_pid("first-mac")?);

    lab.apply(&kernel_vm("lacks-net", "  interfaces: [{name: eth0, network: later}]\n"))?;
    lab.apply(&kernel_vm("envious", "  disks: [{name: data, disk: {name: coveted}}]\n"))?;
    lab.apply(&kernel_vm(
        "second-mac",
        "  interfaces: [{name: eth0, network: nat, macAddress: \"02:76:00:aa:bb:cc\"}]\n",
    ))?;
    for (name, reason, words) in [
        ("lacks-net", "NetworkNotFound", &["spec.interfaces[0].network", "later", "create it"][..]),
        (
            "envious",
            "DiskInUse",
            &["spec.disks[0]", "coveted", "VirtualMachine \"owner\"", "detach it there"],
        ),
        (
            "second-mac",
            "MacClash",
            &["spec.interfaces[0].macAddress", "02:76:00:aa:bb:cc", "default/first-mac", "change it"],
        ),
    ] {
        let vm = lab.until_said("vvm", name, "Accepted", words)?;
        ensure!(
            condition(&vm, "Accepted").is_some_and(|c| c["reason"] == reason),
            "{name}: {}",
            vm["status"]
        );
        ensure!(vm["status"].get("placement").is_none(), "{name} has a host: {}", vm["status"]);
        ensure!(condition(&vm, "Ready").is_some_and(|c| c["status"] == "False"), "{name}: {}", vm["status"]);
    }
    ensure!(
        lab.qemu_pid("owner")? == owner && lab.qemu_pid("first-mac")? == first,
        "a guest was touched for another's fault"
    );

    lab.apply("apiVersion: vireo.dev/v1alpha1\nkind: Network\nmetadata: {name: later}\nspec: {nat: {cidr: 10.89.0.0/24, dhcp: {}}}\n")?;
    lab.until_running("lacks-net")?;
    gone(lab, "vvm", &["owner", "first-mac"])?;
    lab.until_running("envious")?;
    lab.until_running("second-mac")?;
    gone(lab, "vvm", &vms)?;
    gone(lab, "vdisk", &["coveted"])?;
    gone(lab, "network", &["later"])?;
    lab.nothing_panicked()
}

#[test]
fn lab_names_at_the_limit_run_and_others_are_refused() -> Result<()> {
    let lab = &*shared()?;
    let (name, device) = ("n".repeat(63), "d".repeat(32));
    gone(lab, "vvm", &[&name])?;
    let manifest = tiny_vm(&name, "")
        .replace("name: root", &format!("name: {device}"))
        .replace("name: eth0", &format!("name: {device}"));
    lab.apply(&manifest)?;
    lab.until_running(&name)?;
    lab.until_serial(&name, "login: boot 1")?;
    let vm = lab.until("the agent answers", Duration::from_secs(60), || {
        let vm = lab.get("vvm", &name)?;
        ensure!(condition(&vm, "AgentConnected").is_some_and(|c| c["status"] == "True"), "{}", vm["status"]);
        Ok(vm)
    })?;
    ensure!(
        vm["status"]["runtime"]["interfaces"][0]["name"] == device.as_str(),
        "{}",
        vm["status"]["runtime"]
    );
    lab.delete_vm(&name)?;

    for (manifest, words) in [
        (tiny_vm(&"n".repeat(64), ""), &["metadata.name", "63"][..]),
        (tiny_vm("größe", ""), &["metadata.name", "größe"]),
        (
            tiny_vm("plain", "").replace("name: eth0", "name: \"réseau\""),
            &["spec.interfaces[0].name", "réseau"],
        ),
        (
            tiny_vm("plain", "").replace("name: root", &format!("name: {}", "d".repeat(33))),
            &["spec.disks[0].name", "32"],
        ),
    ] {
        let refusal =
            format!("{:#}", lab.apply(&manifest).err().with_context(|| format!("accepted: {manifest}"))?);
        for word in words {
            ensure!(refusal.contains(word), "the refusal does not say {word:?}: {refusal}");
        }
    }
    lab.nothing_panicked()
}

#[test]
fn lab_a_vm_deleted_while_it_starts_leaves_nothing_and_its_name_is_free() -> Result<()> {
    let lab = &*shared()?;
    lab.delete_vm("hasty")?;
    let mut uids = Vec::new();
    // Deleted at different moments: before it has a host, while its disk is copied, while QEMU starts.
    for seen in ["/metadata/uid", "/status/placement/host", "/status/runtime/grant/id"] {
        lab.apply(&tiny_vm("hasty", ""))?;
        let vm = lab.until(seen, Duration::from_secs(60), || {
            let vm = lab.get("vvm", "hasty")?;
            ensure!(vm.pointer(seen).is_some(), "{}", vm["status"]);
            Ok(vm)
        })?;
        uids.push(uid(&vm)?);
        lab.delete_vm("hasty")?;
    }
    // Created again while its predecessor still goes.
    lab.apply(&tiny_vm("hasty", ""))?;
    let vm = lab.until_running("hasty")?;
    uids.push(uid(&vm)?);
    lab.kubectl(["delete", "vvm", "hasty", "--wait=false"])?;
    lab.until("the name is free", Duration::from_secs(60), || {
        lab.kubectl_command(["create", "-f", "-"])
            .stdin(manifest(&tiny_vm("hasty", ""))?)
            .output()
            .map_err(Into::into)
            .and_then(|output| {
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Ok(())
            })
    })?;
    let vm = lab.until_running("hasty")?;
    let last = uid(&vm)?;
    ensure!(!uids.contains(&last), "not a new VM");
    lab.until_serial("hasty", "login: boot 1")?;
    lab.qemu_pid("hasty")?;
    for host in ["host1", "host2", "host3"] {
        let domains = lab.virsh(host, ["list", "--all", "--name"])?;
        let expected = usize::from(lab.host_of("hasty")? == host);
        ensure!(
            domains.lines().filter(|name| *name == "default.hasty").count() == expected,
            "{host} has {domains}"
        );
    }
    let left = sh(lab, &format!("ls {SHARED}/vms"))?;
    ensure!(uids.iter().all(|uid| !left.contains(uid.as_str())), "files are left: {left}");
    let disks: Value = serde_json::from_str(&lab.kubectl(["get", "vdisk", "-o", "json"])?)?;
    let names: Vec<&str> = disks["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|disk| disk["metadata"]["name"].as_str())
        .filter(|name| name.starts_with("hasty"))
        .collect();
    ensure!(names == ["hasty-root"], "{names:?}");
    lab.delete_vm("hasty")?;
    lab.nothing_panicked()
}

/// A manifest as a command's standard input.
fn manifest(text: &str) -> Result<fs::File> {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[test]
fn lab_a_domain_that_is_not_mounted_or_belongs_to_others_is_left_alone() -> Result<()> {
    let lab = &*shared()?;
    gone(lab, "vdisk", &["away-old", "away-new"])?;
    gone(lab, "vsd", &["away", "theirs"])?;
    sh(lab, &format!("cd {SHARED} && rm -rf away theirs away.mounted && mkdir away theirs"))?;
    lab.apply(&domain("away"))?;
    lab.until_true("vsd", "away", "Ready")?;
    lab.apply(&disk("away-old", "away", "{blank: {}}"))?;
    let old = lab.until_true("vdisk", "away-old", "Ready")?;
    let volume = old["status"]["volume"].as_str().context("a volume")?.to_owned();
    let before = sh(lab, &format!("stat -c %i {SHARED}/away/volumes/{volume}"))?;

    // Another installation's marker: this one's with another id.
    let marker = sh(lab, &format!("cat {SHARED}/away/.vireo-domain.json"))?;
    let mut theirs: Value = serde_json::from_str(&marker)?;
    theirs["installationId"] = "11111111-2222-3333-4444-555555555555".into();
    let theirs = theirs.to_string();
    sh(lab, &format!("printf %s '{theirs}' > {SHARED}/theirs/.vireo-domain.json"))?;
    lab.apply(&domain("theirs"))?;
    lab.until_said(
        "vsd",
        "theirs",
        "Ready",
        &["11111111-2222-3333-4444-555555555555", "another installation", "use another directory"],
    )?;
    ensure!(
        sh(lab, &format!("cat {SHARED}/theirs/.vireo-domain.json; ls {SHARED}/theirs"))? == theirs,
        "another installation's domain was touched"
    );

    // What an unmounted file system looks like.
    sh(lab, &format!("cd {SHARED} && mv away away.mounted && mkdir away"))?;
    lab.until_said(
        "vsd",
        "away",
        "Ready",
        &[&format!("{SHARED}/away"), "looks unmounted", "mount the file system"],
    )?;
    lab.until("the Disk says that its domain is not there", Duration::from_secs(60), || {
        let object = lab.get("vdisk", "away-old")?;
        ensure!(
            condition(&object, "Ready")
                .is_some_and(|c| c["status"] != "True" && c["reason"] == "DomainNotReady"),
            "{}",
            object["status"]
        );
        ensure!(object["status"]["phase"] == "Ready", "the volume is taken for gone: {}", object["status"]);
        Ok(())
    })?;
    lab.apply(&disk("away-new", "away", "{blank: {}}"))?;
    lab.until_said("vdisk", "away-new", "Ready", &["away"])?;
    ensure!(
        sh(lab, &format!("ls -A {SHARED}/away"))?.trim().is_empty(),
        "something was written where the domain should be mounted"
    );
    sh(lab, &format!("cd {SHARED} && rmdir away && mv away.mounted away"))?;
    lab.until_true("vsd", "away", "Ready")?;
    lab.until_true("vdisk", "away-old", "Ready")?;
    lab.until_true("vdisk", "away-new", "Ready")?;
    ensure!(
        sh(lab, &format!("stat -c %i {SHARED}/away/volumes/{volume}"))? == before,
        "the volume was replaced"
    );
    gone(lab, "vdisk", &["away-old", "away-new"])?;
    gone(lab, "vsd", &["away", "theirs"])?;
    sh(lab, &format!("cd {SHARED} && rm -rf away theirs"))?;
    lab.nothing_panicked()
}

#[test]
fn lab_an_object_that_cannot_be_decoded_stops_nobody_else() -> Result<()> {
    let lab = &*alone()?;
    gone(lab, "vvm", &["beside", "after", "strange"])?;
    gone(lab, "vdisk", &["strange"])?;
    let standing = Standing::make(lab)?;
    lab.apply(&kernel_vm("beside", ""))?;
    lab.until_running("beside")?;
    let pid = lab.qemu_pid("beside")?;
    let mut definitions = Vec::new();
    for crd in ["virtualmachines.vireo.dev", "disks.vireo.dev"] {
        let mut strict = lab.get("crd", crd)?;
        for of_the_server in ["uid", "resourceVersion", "generation", "creationTimestamp"] {
            strict["metadata"].as_object_mut().context("metadata")?.remove(of_the_server);
        }
        strict.as_object_mut().context("an object")?.remove("status");
        let mut loose = strict.clone();
        let schema = loose.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").context("a schema")?;
        schema["properties"]["spec"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        schema.as_object_mut().context("an object")?.remove("x-kubernetes-validations");
        definitions.push((strict, loose));
    }
    // In the name of helm, so that the chart can be upgraded afterwards.
    let replace = |definition: &Value| -> Result<()> {
        let file = lab.state_dir().join("definition.json");
        fs::write(&file, definition.to_string())?;
        lab.kubectl([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=helm",
            "-f",
            &file.display().to_string(),
        ])?;
        Ok(())
    };
    for (_, loose) in &definitions {
        replace(loose)?;
    }
    // What an older or newer version might have stored.
    let strange = [
        ("VirtualMachine", json!({"cluster": "default", "memory": 17})),
        ("Disk", json!({"storageDomain": "shared", "size": "64Mi", "allocation": {"much": true}})),
    ];
    let stored = strange.iter().try_for_each(|(kind, spec)| {
        let object = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": kind, "metadata": {"name": "strange", "namespace": "default"}, "spec": spec});
        lab.until(&format!("the strange {kind} is stored"), Duration::from_secs(30), || lab.apply(&object.to_string())).map(drop)
    });
    for (strict, _) in &definitions {
        replace(strict)?;
    }
    stored?;
    lab.apply(&kernel_vm("after", ""))?;
    lab.until_running("after")?;
    floods_nothing(lab)?;
    // Also for those that list anew.
    lab.lab(["controller", "kill"])?;
    lab.lab(["controller", "start"])?;
    let host = lab.host_of("beside")?;
    lab.lab(["daemon", "kill", &host])?;
    lab.lab(["daemon", "start", &host])?;
    lab.delete_vm("after")?;
    lab.apply(&kernel_vm("after", ""))?;
    lab.until_running("after")?;
    ensure!(lab.qemu_pid("beside")? == pid, "a guest was touched for another's fault");
    for kind in ["vvm", "vdisk"] {
        gone(lab, kind, &["strange"])?;
    }
    gone(lab, "vvm", &["beside", "after"])?;
    standing.remove()?;
    lab.nothing_panicked()
}
