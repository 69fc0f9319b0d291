//! The only home of group, label, annotation, finalizer, lease and namespace names.

/// API group of every kind.
pub const GROUP: &str = "vireo.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// Holds a VM, Disk or Host until what it owns outside the API is gone.
pub const FINALIZER: &str = "vireo.dev/cleanup";

/// Field manager of everything the controller applies.
pub const CONTROLLER_MANAGER: &str = "vireo-controller";
/// Field manager of everything any node daemon applies. One constant for all hosts: a manager per host
/// would leave the old host's fields behind for ever when a VM moves.
pub const NODE_MANAGER: &str = "vireo-node";

/// Namespace of the controller, its Lease and the session object.
pub const SYSTEM_NAMESPACE: &str = "vireo-system";
/// Namespace of the hosts' ServiceAccounts and Leases.
pub const HOSTS_NAMESPACE: &str = "vireo-hosts";

/// Lease that elects the controller's leader.
pub const LEADER_LEASE: &str = "vireo-controller";
/// Lease whose `spec.holderIdentity` is the nonce of the placement session (see `session`).
pub const SESSION_LEASE: &str = "vireo-session";

/// Label on objects made on behalf of a VM: its name.
pub const VM_LABEL: &str = "vireo.dev/vm";
/// Label on objects made on behalf of a Host: its name.
pub const HOST_LABEL: &str = "vireo.dev/host";
/// Label on a Disk made from a VM's template: the name of the disk in that VM.
pub const TEMPLATE_DISK_LABEL: &str = "vireo.dev/template-disk";

/// Annotation on a Host (value: incarnation) or a VirtualMachine (value: grant id): somebody with the verb
/// `confirm` states in writing that it no longer runs.
pub const CONFIRM_ANNOTATION: &str = "vireo.dev/confirm-stopped";
/// Annotation on a VirtualMachine (value: grant id): the copy that a newer grant has superseded, and that stands paused
/// on its old host, is to be destroyed there.
pub const DESTROY_ANNOTATION: &str = "vireo.dev/destroy-superseded";
/// Annotation without which admission refuses to delete one of our CRDs.
pub const CONFIRM_CRD_DELETION_ANNOTATION: &str = "vireo.dev/confirm-deletion-of-all-objects";

/// Signer of the certificates by which node daemons know each other.
pub const HOST_SIGNER: &str = "vireo.dev/host";

/// Namespace of our element in libvirt's domain metadata.
pub const LIBVIRT_METADATA_NS: &str = "https://vireo.dev/libvirt/1";

/// Name of the ServiceAccount a host's daemon uses, in [`HOSTS_NAMESPACE`].
pub fn host_service_account(host: &str) -> String {
    format!("host-{host}")
}

/// User name by which the API server knows a host's daemon.
pub fn host_user_name(host: &str) -> String {
    format!("system:serviceaccount:{HOSTS_NAMESPACE}:{}", host_service_account(host))
}
