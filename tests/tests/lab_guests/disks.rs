//! Disks of every kind on real hosts: made, fetched, grown, thrown away and brought back, shown to guests.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use system_tests::lab::{Lab, alone, condition, shared, tiny_vm, web::Page};

const SHARED: &str = "/srv/vireo/shared";

fn disk(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1\nkind: Disk\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n---\n"
    )
}

fn uid(object: &Value) -> Result<&str> {
    object["metadata"]["uid"].as_str().context("a uid")
}

/// The volume's path on a domain, of a Disk that is Ready.
fn volume(disk: &Value, domain: &str) -> Result<String> {
    let volume =
        disk["status"]["volume"].as_str().with_context(|| format!("no volume: {}", disk["status"]))?;
    Ok(format!("{domain}/volumes/{volume}"))
}

fn info(lab: &Lab, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&lab.exec("host1", ["qemu-img", "info", "-U", "--output=json", path])?)?)
}

fn gone(lab: &Lab, kind: &str, name: &str) -> Result<()> {
    lab.kubectl(["delete", kind, name, "--ignore-not-found", "--timeout=60s"])?;
    Ok(())
}

fn set(lab: &Lab, kind: &str, name: &str, spec: &Value) -> Result<()> {
    lab.kubectl(["patch", kind, name, "--type=merge", "-p", &json!({"spec": spec}).to_string()])?;
    Ok(())
}

fn halt(lab: &Lab, vm: &str) -> Result<()> {
    set(lab, "vvm", vm, &json!({"runStrategy": "Halted"}))?;
    lab.until_vm(vm, "/status/state", &"Stopped".into())?;
    Ok(())
}

/// What an image holds as the guest sees it, by qemu-img.
fn same_content(lab: &Lab, one: &str, other: &str) -> Result<()> {
    lab.exec("host1", ["qemu-img", "compare", "-U", one, other])
        .map(drop)
        .with_context(|| format!("{one} and {other} differ"))
}

#[test]
fn lab_volumes_have_the_format_size_and_allocation_asked_for() -> Result<()> {
    let lab = &*shared()?;
    const MIB: i64 = 1 << 20;
    // Name, spec, format, size in MiB, whether the space is taken.
    let rows = [
        ("vol-qcow2-thin", "storageDomain: shared, size: 64Mi", "qcow2", 64, false),
        ("vol-raw-thin", "storageDomain: shared, size: 64Mi, format: raw", "raw", 64, false),
        ("vol-qcow2-full", "storageDomain: shared, size: 48Mi, allocation: Preallocated", "qcow2", 48, true),
        (
            "vol-raw-full",
            "storageDomain: shared, size: 48Mi, format: raw, allocation: Preallocated",
            "raw",
            48,
            true,
        ),
        (
            "vol-file",
            "storageDomain: shared, size: 128Mi, source: {file: {path: tiny.qcow2}}",
            "qcow2",
            128,
            false,
        ),
        (
            "vol-file-raw",
            "storageDomain: shared, size: 96Mi, format: raw, source: {file: {path: tiny.qcow2}}",
            "raw",
            96,
            false,
        ),
    ];
    for (name, ..) in rows {
        gone(lab, "vdisk", name)?;
    }
    lab.apply(&rows.map(|(name, spec, ..)| disk(name, spec)).concat())?;
    for (name, _, format, mib, full) in rows {
        let object = lab.until_true("vdisk", name, "Ready")?;
        ensure!(
            object["status"]["phase"] == "Ready" && object["status"]["capacity"] == mib * MIB,
            "{name}: {}",
            object["status"]
        );
        let found = info(lab, &volume(&object, SHARED)?)?;
        ensure!(found["format"] == format && found["virtual-size"] == mib * MIB, "{name}: {found}");
        ensure!(found.get("backing-filename").is_none(), "{name} refers to another file: {found}");
        let taken = found["actual-size"].as_i64().unwrap_or_default();
        ensure!(if full { taken >= mib * MIB } else { taken < mib * MIB }, "{name} takes {taken} bytes");
    }
    // Growing, which is all that an edit of the size can do.
    set(lab, "vdisk", "vol-file-raw", &json!({"size": "160Mi"}))?;
    lab.until("vol-file-raw has grown", Duration::from_secs(30), || {
        let object = lab.get("vdisk", "vol-file-raw")?;
        ensure!(object["status"]["capacity"] == 160 * MIB, "{}", object["status"]);
        let found = info(lab, &volume(&object, SHARED)?)?;
        ensure!(found["virtual-size"] == 160 * MIB, "{found}");
        Ok(())
    })?;
    let refused =
        set(lab, "vdisk", "vol-file-raw", &json!({"size": "16Mi"})).err().context("a disk shrank")?;
    ensure!(format!("{refused:#}").contains("spec.size: a disk may grow but never shrink"), "{refused:#}");
    for (name, ..) in rows {
        lab.kubectl(["delete", "vdisk", name, "--wait=false"])?;
    }
    for (name, ..) in rows {
        gone(lab, "vdisk", name)?;
    }
    lab.nothing_panicked()
}

#[test]
fn lab_an_import_shows_its_progress_and_survives_its_daemon() -> Result<()> {
    let lab = &*alone()?;
    let image = std::fs::read(system_tests::root().join("target/images/tiny.qcow2"))?;
    let digest = lab.exec("host1", ["sha256sum", &format!("{SHARED}/files/tiny.qcow2")])?;
    let digest = digest.split(' ').next().unwrap_or_default().to_owned();
    let pages = BTreeMap::from([
        ("slow.qcow2".to_owned(), Page::Slowly(image.clone(), Duration::from_secs(8))),
        ("fast.qcow2".to_owned(), Page::Bytes(image)),
        ("moved.qcow2".to_owned(), Page::Redirect("fast.qcow2".into())),
    ]);
    let web = lab.serve("host1", pages)?;
    set(lab, "vsd", "shared", &json!({"imports": {"allowedUrls": [&web]}}))?;
    for name in ["import-slow", "import-moved"] {
        gone(lab, "vdisk", name)?;
    }
    lab.apply(&disk(
        "import-moved",
        &format!("storageDomain: shared, size: 64Mi, source: {{http: {{url: \"{web}moved.qcow2\"}}}}"),
    ))?;
    lab.apply(&disk("import-slow", &format!("storageDomain: shared, size: 64Mi, source: {{http: {{url: \"{web}slow.qcow2\", checksum: \"sha256:{digest}\"}}}}")))?;
    let progress = |least: u32| {
        lab.until("progress is shown", Duration::from_secs(30), || {
            let object = lab.get("vdisk", "import-slow")?;
            let percent = object["status"]["progress"]
                .as_str()
                .and_then(|text| text.trim_end_matches('%').parse::<u32>().ok());
            ensure!(percent.is_some_and(|percent| percent >= least && percent < 100), "{}", object["status"]);
            ensure!(
                condition(&object, "Ready")
                    .is_some_and(|c| c["status"] == "False" && c["reason"] == "Importing"),
                "{}",
                object["status"]
            );
            Ok(object)
        })
    };
    let object = progress(10)?;
    let host = object["status"]["placement"]["host"].as_str().context("a working host")?.to_owned();
    lab.lab(["daemon", "kill", &host])?;
    lab.lab(["daemon", "start", &host])?;
    progress(1)?;
    let object = lab.until_true("vdisk", "import-slow", "Ready")?;
    ensure!(object["status"]["contentDigest"] == format!("sha256:{digest}"), "{}", object["status"]);
    ensure!(object["status"].get("progress").is_none(), "progress stays after the end: {}", object["status"]);
    same_content(lab, &volume(&object, SHARED)?, &format!("{SHARED}/files/tiny.qcow2"))?;
    let moved = lab.until_true("vdisk", "import-moved", "Ready")?;
    same_content(lab, &volume(&moved, SHARED)?, &format!("{SHARED}/files/tiny.qcow2"))?;
    let rest = lab.exec("host1", ["sh", "-c", &format!("ls {SHARED}/volumes | grep partial || true")])?;
    ensure!(rest.trim().is_empty(), "unfinished files are left: {rest}");
    set(lab, "vsd", "shared", &json!({"imports": {"allowedUrls": null}}))?;
    for name in ["import-slow", "import-moved"] {
        gone(lab, "vdisk", name)?;
    }
    lab.nothing_panicked()
}

#[test]
fn lab_a_deleted_volume_comes_back_from_the_trash_and_a_retained_one_stays() -> Result<()> {
    let lab = &*shared()?;
    for name in ["thrown", "kept", "thrown-back", "kept-back", "thrown-elsewhere"] {
        gone(lab, "vdisk", name)?;
    }
    let source = "source: {file: {path: tiny.qcow2}}";
    lab.apply(&disk("thrown", &format!("storageDomain: shared, size: 96Mi, {source}")))?;
    lab.apply(&disk(
        "kept",
        &format!("storageDomain: shared, size: 96Mi, format: raw, reclaimPolicy: Retain, {source}"),
    ))?;
    let thrown = lab.until_true("vdisk", "thrown", "Ready")?;
    let kept = lab.until_true("vdisk", "kept", "Ready")?;
    let (thrown_uid, kept_uid) = (uid(&thrown)?.to_owned(), uid(&kept)?.to_owned());
    // A mark in the content, so that a fresh copy of the source cannot pass for the old volume.
    let mark = |path: &str, format: &str| {
        lab.exec("host1", ["qemu-io", "-f", format, "-c", "write -P 0x5a 90M 64k", path])
    };
    let marked = |path: &str, format: &str| {
        lab.exec("host1", ["qemu-io", "-r", "-f", format, "-c", "read -P 0x5a 90M 64k", path])
    };
    mark(&volume(&thrown, SHARED)?, "qcow2")?;
    mark(&volume(&kept, SHARED)?, "raw")?;
    gone(lab, "vdisk", "thrown")?;
    gone(lab, "vdisk", "kept")?;
    let list = lab.exec("host1", ["sh", "-c", &format!("cd {SHARED} && ls volumes trash")])?;
    let (volumes, trash) =
        list.split_once("volumes:").map_or((list.as_str(), ""), |(trash, volumes)| (volumes, trash));
    ensure!(
        trash.contains(&thrown_uid) && !volumes.contains(&thrown_uid),
        "the deleted volume is not in the trash: {list}"
    );
    ensure!(
        volumes.contains(&kept_uid) && !trash.contains(&kept_uid),
        "the retained volume did not stay: {list}"
    );

    lab.kubectl_command(["create", "namespace", "elsewhere"]).output()?;
    let elsewhere = disk(
        "thrown-elsewhere",
        &format!("storageDomain: shared, size: 96Mi, source: {{volume: {{uid: {thrown_uid}}}}}"),
    );
    lab.apply(&elsewhere.replace("namespace: default", "namespace: elsewhere"))?;
    lab.until("another namespace is refused", Duration::from_secs(30), || {
        let object: Value = serde_json::from_str(&lab.kubectl([
            "get",
            "vdisk",
            "-n",
            "elsewhere",
            "thrown-elsewhere",
            "-o",
            "json",
        ])?)?;
        let message =
            condition(&object, "Ready").and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned();
        ensure!(
            message.contains("spec.source.volume.uid") && message.contains("another namespace"),
            "{}",
            object["status"]
        );
        Ok(())
    })?;
    lab.kubectl(["delete", "namespace", "elsewhere", "--timeout=60s"])?;

    lab.apply(&disk(
        "thrown-back",
        &format!("storageDomain: shared, size: 96Mi, source: {{volume: {{uid: {thrown_uid}}}}}"),
    ))?;
    lab.apply(&disk(
        "kept-back",
        &format!("storageDomain: shared, size: 96Mi, format: raw, source: {{volume: {{uid: {kept_uid}}}}}"),
    ))?;
    let back = lab.until_true("vdisk", "thrown-back", "Ready")?;
    marked(&volume(&back, SHARED)?, "qcow2")?;
    let back = lab.until_true("vdisk", "kept-back", "Ready")?;
    marked(&volume(&back, SHARED)?, "raw")?;
    for name in ["thrown-back", "kept-back"] {
        gone(lab, "vdisk", name)?;
    }
    lab.nothing_panicked()
}

#[test]
fn lab_a_cd_is_seen_and_an_ephemeral_disk_forgets() -> Result<()> {
    let lab = &*shared()?;
    for name in ["throwaway", "throwaway-2"] {
        lab.delete_vm(name)?;
    }
    for name in ["golden", "installer"] {
        gone(lab, "vdisk", name)?;
    }
    lab.exec("host1", ["sh", "-c", &format!("mkdir -p /tmp/cd && echo 'hello from the cd' > /tmp/cd/README && genisoimage -quiet -V INSTALLER -r -o {SHARED}/files/installer.iso /tmp/cd")])?;
    lab.apply(&disk(
        "installer",
        "storageDomain: shared, size: 1Mi, format: raw, source: {file: {path: installer.iso}}",
    ))?;
    lab.apply(&disk("golden", "storageDomain: shared, size: 128Mi, source: {file: {path: tiny.qcow2}}"))?;
    let golden = lab.until_true("vdisk", "golden", "Ready")?;
    let base = volume(&golden, SHARED)?;
    let before = lab.exec("host1", ["sha256sum", &base])?;
    let vm = |name: &str| {
        format!(
            "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, namespace: default}}
spec:
  memory: {{size: 256Mi}}
  gracePeriodSeconds: 30
  disks:
  - {{name: root, ephemeral: {{disk: golden}}, bootOrder: 1}}
  - {{name: cd, cdrom: {{disk: installer}}, bootOrder: 2}}
  - {{name: empty, cdrom: {{}}}}
---
"
        )
    };
    // Two at once over the same two disks, on whatever hosts.
    lab.apply(&(vm("throwaway") + &vm("throwaway-2")))?;
    for name in ["throwaway", "throwaway-2"] {
        lab.until_running(name)?;
        lab.until_serial(name, "login: boot 1")?;
    }
    let said = lab.in_guest(
        "throwaway",
        "busybox mkdir -p /cd && busybox mount -t iso9660 -o ro /dev/sr0 /cd && busybox cat /cd/README",
    )?;
    ensure!(said.contains("hello from the cd"), "the CD holds {said:?}");
    let refused = lab
        .in_guest("throwaway", "busybox dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 2>&1; echo")
        .unwrap_or_default();
    ensure!(refused.contains("dd:") || refused.contains("Read-only"), "the guest wrote to its CD: {refused}");
    halt(lab, "throwaway")?;
    set(lab, "vvm", "throwaway", &json!({"runStrategy": "Always"}))?;
    lab.until_running("throwaway")?;
    // The boot counter on the disk begins anew, since the layer was thrown away.
    lab.until_serial("throwaway", "login: boot 1")?;
    for name in ["throwaway", "throwaway-2"] {
        lab.delete_vm(name)?;
    }
    ensure!(
        lab.exec("host1", ["sha256sum", &base])? == before,
        "the base of an ephemeral disk was written to"
    );
    for name in ["golden", "installer"] {
        gone(lab, "vdisk", name)?;
    }
    lab.nothing_panicked()
}

#[test]
fn lab_a_disk_on_a_local_domain_keeps_its_vm_on_its_host() -> Result<()> {
    let lab = &*shared()?;
    lab.delete_vm("settled")?;
    for host in ["host1", "host2", "host3"] {
        let copy = format!(
            "[ -e /srv/vireo/local/files/tiny.qcow2 ] || cp {SHARED}/files/tiny.qcow2 /srv/vireo/local/files/"
        );
        lab.exec(host, ["sh", "-c", &copy])?;
    }
    lab.apply(&tiny_vm("settled", "").replace("storageDomain: shared", "storageDomain: local"))?;
    lab.until_running("settled")?;
    lab.until_serial("settled", "login: boot 1")?;
    let home = lab.host_of("settled")?;
    let object = lab.get("vdisk", "settled-root")?;
    ensure!(object["status"]["localHost"] == home.as_str(), "{}", object["status"]);
    lab.exec(&home, ["test", "-e", &volume(&object, "/srv/vireo/local")?])?;
    halt(lab, "settled")?;

    let other = if home == "host1" { "host2" } else { "host1" };
    set(lab, "vvm", "settled", &json!({"runStrategy": "Always", "scheduling": {"hostName": other}}))?;
    let vm = lab.until("no host fits", Duration::from_secs(30), || {
        let vm = lab.get("vvm", "settled")?;
        let said =
            vm["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["reason"] == "NoHostFits");
        let message = said
            .and_then(|c| c["message"].as_str())
            .with_context(|| vm["status"]["conditions"].to_string())?;
        ensure!(message.contains("settled-root") || message.contains("disk"), "{message}");
        Ok(vm)
    })?;
    ensure!(vm["status"]["runtime"]["power"] == "Off", "{}", vm["status"]);
    set(lab, "vvm", "settled", &json!({"scheduling": {"hostName": null}}))?;
    let asked = Instant::now();
    lab.until_vm("settled", "/status/runtime/power", &"On".into())?;
    ensure!(lab.host_of("settled")? == home, "it left its disk after {:?}", asked.elapsed());
    lab.until_serial("settled", "login: boot 2")?;
    lab.delete_vm("settled")?;
    lab.nothing_panicked()
}
