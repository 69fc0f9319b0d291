//! What the API server itself answers to manifests: good ones behave as built-in kinds do, bad ones are refused in words.

use std::{io::Write, process::Stdio};

use anyhow::{Context, Result, ensure};
use system_tests::apiserver::{ApiServer, User, shared};

/// A VM manifest with these lines added to its spec.
fn vm(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name:?}, namespace: default}}\nspec:\n  memory: {{size: 128Mi}}\n{spec}"
    )
}

fn apply(
    server: &ApiServer,
    user: User<'_>,
    manifest: &str,
    options: &[&str],
) -> Result<Result<String, String>> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(manifest.as_bytes())?;
    let mut args = vec!["apply".to_owned(), "-f".to_owned(), file.path().display().to_string()];
    args.extend(options.iter().map(|option| (*option).to_owned()));
    let output = server.kubectl(user, args)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// Each manifest is refused, and the message holds every word given.
#[test]
fn bad_manifests_are_refused_in_words() -> Result<()> {
    let server = shared()?;
    let cases: &[(&str, &str, &[&str])] = &[
        ("no vCPU", "  cpu: {cores: 0}", &["spec.cpu.cores", "0", "greater than or equal to 1"]),
        ("1,000 vCPUs", "  cpu: {cores: 1000}", &["spec.cpu.cores", "1000", "710"]),
        ("too many by product", "  cpu: {sockets: 4, cores: 200}", &["spec.cpu", "710", "lower one"]),
        (
            "unknown run strategy",
            "  runStrategy: Sometimes",
            &["spec.runStrategy", "Sometimes", "RerunOnFailure"],
        ),
        (
            "two disks of one name",
            "  disks: [{name: a, disk: {name: x}}, {name: a, disk: {name: z}}]",
            &["spec.disks[1]", "Duplicate"],
        ),
        (
            "two NICs of one name",
            "  interfaces: [{name: a, network: x}, {name: a, network: y}]",
            &["spec.interfaces[1]", "Duplicate"],
        ),
        (
            "a disk that is nothing",
            "  disks: [{name: a}]",
            &["spec.disks[0]", "exactly one of disk, template, cdrom and ephemeral"],
        ),
        (
            "a disk that is two things",
            "  disks: [{name: a, disk: {name: x}, ephemeral: {disk: z}}]",
            &["exactly one of"],
        ),
        (
            "a disk name too long",
            "  disks: [{name: aaaaaaaaaabbbbbbbbbbccccccccccddd, disk: {name: x}}]",
            &["spec.disks[0].name", "32"],
        ),
        (
            "a multicast MAC",
            "  interfaces: [{name: a, network: x, macAddress: \"01:00:5e:00:00:01\"}]",
            &["spec.interfaces[0].macAddress", "01:00:5e"],
        ),
        ("unicode in a name", "  disks: [{name: größe, disk: {name: x}}]", &["spec.disks[0].name", "größe"]),
        ("two firmwares", "  firmware: {bios: {}, uefi: {}}", &["spec.firmware"]),
        (
            "both user data",
            "  cloudInit: {userData: a, userDataSecret: {name: b}}",
            &["spec.cloudInit", "not both"],
        ),
        (
            "a checksum that is none",
            "  disks: [{name: a, template: {storageDomain: s, size: 1Gi, source: {http: {url: \"https://x/y\", checksum: md5:1}}}}]",
            &["checksum", "md5:1"],
        ),
        (
            "a URL of another kind",
            "  disks: [{name: a, template: {storageDomain: s, size: 1Gi, source: {http: {url: \"file:///etc/shadow\"}}}}]",
            &["url", "file:///etc/shadow"],
        ),
        (
            "a disk of no size",
            "  disks: [{name: a, template: {storageDomain: s, size: nothing}}]",
            &["size", "nothing", "20Gi"],
        ),
    ];
    for (what, spec, words) in cases {
        let refusal = apply(server, User::Admin, &vm("bad", spec), &["--dry-run=server"])?.err();
        let refusal = refusal.with_context(|| format!("{what}: was accepted"))?;
        for word in *words {
            ensure!(refusal.contains(word), "{what}: the refusal does not say {word:?}: {refusal}");
        }
    }
    Ok(())
}

#[test]
fn bad_memory_names_and_sizes_are_refused_in_words() -> Result<()> {
    let server = shared()?;
    let manifest = |name: &str, memory: &str| {
        format!(
            "apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name:?}, namespace: default}}\nspec: {{memory: {{size: {memory:?}}}}}\n"
        )
    };
    let long = "n".repeat(64);
    for (manifest, words) in [
        (manifest("m", "12 bananas"), vec!["spec.memory.size", "12 bananas", "512Mi"]),
        (manifest("m", "65Ti"), vec!["spec.memory", "64Ti"]),
        (manifest("m", "1Mi"), vec!["spec.memory", "16Mi"]),
        (manifest("m", "-1Gi"), vec!["spec.memory.size"]),
        (manifest(&long, "1Gi"), vec!["metadata.name", "63"]),
        (manifest("dotted.name", "1Gi"), vec!["metadata.name"]),
    ] {
        let refusal = apply(server, User::Admin, &manifest, &["--dry-run=server"])?
            .err()
            .with_context(|| format!("accepted: {manifest}"))?;
        for word in words {
            ensure!(refusal.contains(word), "the refusal does not say {word:?}: {refusal}");
        }
    }
    ensure!(
        apply(server, User::Admin, &manifest(&"n".repeat(63), "64Ti"), &["--dry-run=server"])?.is_ok(),
        "the limits themselves are allowed"
    );
    Ok(())
}

#[test]
fn a_megabyte_of_cloud_init_is_refused() -> Result<()> {
    let server = shared()?;
    let manifest = vm("big", &format!("  cloudInit: {{userData: {:?}}}", "a".repeat(1 << 20)));
    let refusal = apply(server, User::Admin, &manifest, &["--dry-run=server", "--server-side"])?
        .err()
        .context("accepted")?;
    ensure!(
        refusal.contains("65536") || refusal.contains("Too long"),
        "{}",
        refusal.chars().take(400).collect::<String>()
    );
    Ok(())
}

#[test]
fn applying_again_changes_nothing() -> Result<()> {
    let server = shared()?;
    let manifest =
        vm("again", "  cpu: {cores: 2}\n  clock: {timezone: {name: Europe/Berlin}}\n  machine: null\n");
    apply(server, User::Admin, &manifest, &[])?.map_err(anyhow::Error::msg)?;
    let version = || {
        server.admin([
            "get",
            "vvm",
            "again",
            "-o",
            "jsonpath={.metadata.generation} {.metadata.resourceVersion}",
        ])
    };
    let first = version()?;
    let second = apply(server, User::Admin, &manifest, &[])?.map_err(anyhow::Error::msg)?;
    ensure!(second.contains("unchanged"), "{second}");
    ensure!(first == version()?, "an apply of the same manifest wrote something");
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(manifest.as_bytes())?;
    let diff = server.kubectl(User::Admin, ["diff", "-f", &file.path().display().to_string()])?;
    ensure!(diff.status.success(), "kubectl diff: {}", String::from_utf8_lossy(&diff.stdout));
    server.admin(["delete", "vvm", "again", "--wait=false"])?;
    Ok(())
}

/// Two managers share one VM: each owns its disk, by name.
#[test]
fn two_appliers_share_a_list() -> Result<()> {
    let server = shared()?;
    let name = "shared-list";
    let one = vm(name, "  disks: [{name: a, disk: {name: x}}]");
    let two = format!(
        "apiVersion: vireo.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  disks: [{{name: b, disk: {{name: z}}}}]\n"
    );
    apply(server, User::Admin, &one, &["--server-side", "--field-manager=one"])?
        .map_err(anyhow::Error::msg)?;
    apply(server, User::Admin, &two, &["--server-side", "--field-manager=two"])?
        .map_err(anyhow::Error::msg)?;
    let names = server.admin(["get", "vvm", name, "-o", "jsonpath={.spec.disks[*].name}"])?;
    ensure!(names == "a b", "{names}");
    server.admin(["delete", "vvm", name, "--wait=false"])?;
    Ok(())
}

#[test]
fn choosing_another_member_of_a_union_is_not_refused() -> Result<()> {
    let server = shared()?;
    apply(server, User::Admin, &vm("union", ""), &[])?.map_err(anyhow::Error::msg)?;
    apply(server, User::Admin, &vm("union", "  clock: {timezone: {name: Europe/Berlin}}\n  graphics: {none: {}}\n  cpu: {model: {hostModel: {}}}\n"), &[])?
        .map_err(anyhow::Error::msg)?;
    server.admin(["delete", "vvm", "union", "--wait=false"])?;
    Ok(())
}

/// A new object is not Current in kstatus' eyes before we have seen it.
#[test]
fn a_new_object_is_not_ready() -> Result<()> {
    let server = shared()?;
    apply(server, User::Admin, &vm("unseen", ""), &[])?.map_err(anyhow::Error::msg)?;
    let seen = server.admin([
        "get",
        "vvm",
        "unseen",
        "-o",
        "jsonpath={.status.observedGeneration} {.status.conditions[?(@.type==\"Ready\")].status}",
    ])?;
    ensure!(seen == "-1 Unknown", "{seen}");
    server.admin(["delete", "vvm", "unseen", "--wait=false"])?;
    Ok(())
}

#[test]
fn every_field_is_explained() -> Result<()> {
    let server = shared()?;
    for (path, words) in [
        ("vvm.spec.cpu", "sockets x cores x threads"),
        ("vvm.spec.runStrategy", "RerunOnFailure"),
        ("vdisk.spec.source.http", "allowedUrls"),
        ("vnet.spec.nat", "DHCP"),
    ] {
        let text = server.admin(["explain", path])?.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(text.contains(words), "kubectl explain {path}: {text}");
    }
    Ok(())
}

#[test]
fn kustomize_builds_the_gitops_folder() -> Result<()> {
    let server = shared()?;
    let folder = system_tests::root().join("examples/gitops");
    let rendered = server.admin(["kustomize".into(), folder.as_os_str().to_owned()])?;
    ensure!(
        rendered.contains("namespace: shop") && rendered.contains("app.kubernetes.io/part-of: shop"),
        "{rendered}"
    );
    server.admin(["create", "namespace", "shop"])?;
    server.admin(["apply".into(), "-k".into(), folder.as_os_str().to_owned(), "--dry-run=server".into()])?;
    server.admin(["delete", "namespace", "shop", "--wait=false"])?;
    Ok(())
}

#[test]
fn every_example_is_accepted() -> Result<()> {
    let server = shared()?;
    let mut seen = 0;
    for folder in ["examples", "examples/infrastructure", "examples/acts", "examples/quickstart"] {
        for entry in std::fs::read_dir(system_tests::root().join(folder))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            seen += 1;
            // Acts have generated names, so they are created, not applied.
            let verb = if folder.ends_with("acts") { "create" } else { "apply" };
            server
                .admin([verb.into(), "--dry-run=server".into(), "-f".into(), path.as_os_str().to_owned()])
                .with_context(|| path.display().to_string())?;
        }
    }
    ensure!(seen >= 14, "only {seen} examples were found");
    Ok(())
}

/// The right to use a cluster-scoped object is asked of the person who applies.
#[test]
fn using_takes_the_verb_use() -> Result<()> {
    let server = shared()?;
    server.admin([
        "create",
        "rolebinding",
        "ann-edits",
        "--clusterrole=edit",
        "--user=ann",
        "-n",
        "default",
    ])?;
    let manifest = vm(
        "of-ann",
        "  interfaces: [{name: a, network: secret-lan}]\n  disks: [{name: d, template: {storageDomain: vault, size: 1Gi}}]\n",
    );
    let refusal =
        apply(server, User::Person("ann"), &manifest, &[])?.err().context("accepted without the verb")?;
    ensure!(refusal.contains("you may not use"), "{refusal}");
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: ann-uses}\nrules:\n- {apiGroups: [vireo.dev], resources: [networks, storagedomains], resourceNames: [secret-lan, vault], verbs: [use]}\n";
    apply(server, User::Admin, role, &[])?.map_err(anyhow::Error::msg)?;
    server.admin(["create", "clusterrolebinding", "ann-uses", "--clusterrole=ann-uses", "--user=ann"])?;
    apply(server, User::Person("ann"), &manifest, &[])?.map_err(anyhow::Error::msg)?;
    // Losing the right does not break editing the rest.
    server.admin(["delete", "clusterrolebinding", "ann-uses"])?;
    let edited = manifest.replace("memory: {size: 128Mi}", "memory: {size: 256Mi}");
    apply(server, User::Person("ann"), &edited, &[])?.map_err(anyhow::Error::msg)?;
    let more = edited.replace("network: secret-lan}", "network: secret-lan}, {name: b, network: other}");
    ensure!(apply(server, User::Person("ann"), &more, &[])?.is_err(), "a new name was not checked");
    server.admin(["delete", "vvm", "of-ann", "--wait=false"])?;
    Ok(())
}

#[test]
fn every_index_of_a_full_list_is_checked() -> Result<()> {
    let server = shared()?;
    server.admin([
        "create",
        "rolebinding",
        "bob-edits",
        "--clusterrole=edit",
        "--user=bob",
        "-n",
        "default",
    ])?;
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: bob-uses}\nrules:\n- {apiGroups: [vireo.dev], resources: [networks], verbs: [use]}\n";
    apply(server, User::Admin, role, &[])?.map_err(anyhow::Error::msg)?;
    let interfaces = |count: usize| {
        (0..count).map(|i| format!("{{name: e{i}, network: n{i}}}")).collect::<Vec<_>>().join(", ")
    };
    let full = vm("of-bob", &format!("  interfaces: [{}]\n", interfaces(16)));
    ensure!(
        apply(server, User::Person("bob"), &full, &["--dry-run=server"])?.is_err(),
        "accepted without the verb"
    );
    server.admin(["create", "clusterrolebinding", "bob-uses", "--clusterrole=bob-uses", "--user=bob"])?;
    apply(server, User::Person("bob"), &full, &["--dry-run=server"])?.map_err(anyhow::Error::msg)?;
    Ok(())
}

#[test]
fn our_crds_are_not_deleted_unconfirmed() -> Result<()> {
    let server = shared()?;
    let output =
        server.kubectl(User::Admin, ["delete", "crd", "virtualmachines.vireo.dev", "--dry-run=server"])?;
    let refusal = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && refusal.contains("confirm-deletion-of-all-objects"), "{refusal}");
    Ok(())
}

#[test]
fn a_protected_vm_is_not_deleted() -> Result<()> {
    let server = shared()?;
    apply(server, User::Admin, &vm("kept", "  deletionProtection: true"), &[])?
        .map_err(anyhow::Error::msg)?;
    let output = server.kubectl(User::Admin, ["delete", "vvm", "kept"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("deletionProtection"), "{output:?}");
    apply(server, User::Admin, &vm("kept", "  deletionProtection: false"), &[])?
        .map_err(anyhow::Error::msg)?;
    server.admin(["delete", "vvm", "kept", "--wait=false"])?;
    Ok(())
}

#[test]
fn kubectl_is_the_same_binary_under_another_name() -> Result<()> {
    let kubectl = system_tests::root().join("target/tools/kubectl");
    let output = std::process::Command::new(&kubectl)
        .args(["version", "--client"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| kubectl.display().to_string())?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("v1.37"), "{output:?}");
    Ok(())
}
