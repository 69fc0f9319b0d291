//! Paths inside a storage domain: of imports, of images and kernels to start from.

use std::path::Component;

use node_plan::storage::path::RelativePath;

/// Whatever is accepted stays inside.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = RelativePath::parse(text) else { return };
    assert!(path.as_path().components().all(|part| matches!(part, Component::Normal(_))), "{text}");
    assert!(!path.as_str().is_empty() && !path.as_str().contains('\0'));
    assert_eq!(RelativePath::parse(path.as_str()).as_ref().ok(), Some(&path));
}
