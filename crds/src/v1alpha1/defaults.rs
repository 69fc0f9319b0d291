//! Schema defaults that several kinds share.

/// HostCluster that hosts and VMs belong to when they name none.
pub(super) fn default_cluster() -> String {
    "default".into()
}

pub(super) fn yes() -> bool {
    true
}
