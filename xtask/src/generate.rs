//! Writes what is generated from the types: CRD YAML, the chart's copy, admission policies, the references.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kube::ResourceExt;
use vireo_crds::{all_crds, meta, reasons};

use crate::{policies, reference};

/// Every generated file with its content.
fn files() -> Result<BTreeMap<PathBuf, String>> {
    let crds = all_crds()?;
    let mut files = BTreeMap::new();
    for crd in &crds {
        let yaml = serde_saphyr::to_string(crd)?;
        let name = format!("{}.yaml", crd.name_any());
        files.insert(Path::new("crds/yaml").join(&name), yaml.clone());
        files.insert(Path::new("charts/vireo/charts/crds/templates").join(&name), chart_copy(&yaml));
    }
    files.insert("charts/vireo/templates/admission-use.yaml".into(), policies::use_policies());
    files.insert("docs/reference.md".into(), reference::render(&crds)?);
    files.insert("docs/reasons.md".into(), render_reasons());
    Ok(files)
}

/// The CRD as the chart ships it: kept when the release is uninstalled, because deleting a CRD deletes every object.
fn chart_copy(yaml: &str) -> String {
    let annotations = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n";
    yaml.replacen("metadata:\n", annotations, 1).replace("{{", "{{ \"{{\" }}")
}

fn render_reasons() -> String {
    let mut sorted: Vec<_> = reasons::ALL.iter().collect();
    sorted.sort_by_key(|reason| reason.name);
    let mut text = format!(
        "# Reasons\n\nThe word in `reason` of a condition or an Event of `{}`, what it means and what to do. Generated; do not edit.\n\n| Reason | Meaning | What to do |\n|---|---|---|\n",
        meta::GROUP
    );
    for reason in sorted {
        text.push_str(&format!("| `{}` | {} | {} |\n", reason.name, reason.meaning, reason.remedy));
    }
    text
}

/// Writes every generated file and removes CRDs that are no longer declared.
pub fn write(root: &Path) -> Result<usize> {
    let files = files()?;
    for stale in stale(root, &files)? {
        fs::remove_file(&stale).with_context(|| format!("cannot remove {}", stale.display()))?;
    }
    for (path, content) in &files {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        if fs::read_to_string(&path).ok().as_deref() != Some(content) {
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(files.len())
}

/// Differences between what is committed and what the types say.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let files = files()?;
    let differing = files
        .iter()
        .filter(|(path, content)| fs::read_to_string(root.join(path)).ok().as_deref() != Some(content))
        .map(|(path, _)| format!("{} differs from the types: run `cargo xtask gen`", path.display()));
    let stale = stale(root, &files)?
        .into_iter()
        .map(|path| format!("{} belongs to no kind any more: run `cargo xtask gen`", path.display()));
    Ok(differing.chain(stale).collect())
}

fn stale(root: &Path, files: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>> {
    let mut stale = Vec::new();
    for folder in ["crds/yaml", "charts/vireo/charts/crds/templates"] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries {
            let name = entry?.file_name();
            let path = Path::new(folder).join(&name);
            if name.to_string_lossy().contains(meta::GROUP) && !files.contains_key(&path) {
                stale.push(root.join(path));
            }
        }
    }
    Ok(stale)
}
