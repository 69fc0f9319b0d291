//! Every reason of a condition or an Event, with its meaning and remedy: the source of docs/reasons.md.

/// One reason.
#[derive(Debug, Clone, Copy)]
pub struct Reason {
    /// CamelCase word in `reason`.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it; empty if nothing.
    pub remedy: &'static str,
}

macro_rules! reasons {
    ($($constant:ident = $name:literal, $meaning:literal, $remedy:literal;)*) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)*
        /// All reasons, by name.
        pub const ALL: &[Reason] = &[$(Reason { name: $name, meaning: $meaning, remedy: $remedy }),*];
    };
}

reasons! {
    PENDING = "Pending", "The object has not been looked at yet.", "Is the controller running?";
    ACCEPTED = "Accepted", "The newest spec has been checked and is being acted on.", "";
    REFUSED = "Refused", "The spec asks for something impossible; the message names field, value and remedy.", "Edit the field the message names.";
    PLACED = "Placed", "The VM has a host.", "";
    NO_HOST_FITS = "NoHostFits", "No host fits; the message counts what each lacks.", "Free what the message names, or add a host.";
    ATTESTATION_PENDING = "AttestationPending", "Hosts have not yet said what they run since the controller's session began; placing now could start a second copy.", "Bring the named hosts back, or confirm in writing that they are off.";
    WAITING_FOR_EVIDENCE = "WaitingForEvidence", "An earlier grant is not known to be over.", "Bring the named host back, or confirm with the annotation vireo.dev/confirm-stopped.";
    HOST_SILENT = "HostSilent", "The host has not renewed its Lease; nothing is assumed about its guests.", "Check the host and its network.";
    RUNNING = "Running", "The guest runs as wanted.", "";
    STOPPED = "Stopped", "The guest is down as wanted.", "";
    STARTING = "Starting", "The guest is being started.", "";
    STOPPING = "Stopping", "The guest was asked to shut down.", "";
    CRASH_LOOP = "CrashLoop", "The guest crashes again and again; the next try is delayed.", "Look at its serial console and at the message.";
    MAC_CLASH = "MacClash", "Another VM of the cluster has this address.", "Change macAddress on one of the two.";
    DISK_NAME_TAKEN = "DiskNameTaken", "A Disk of the template's name exists and belongs to somebody else.", "Rename the disk, or use the existing one with disk: {name: ...}.";
    DOMAIN_NOT_READY = "DomainNotReady", "The storage domain cannot be used on the host that works on the disk.", "Look at the StorageDomain and at the host's entry in it.";
    VOLUME_READY = "VolumeReady", "The volume is there.", "";
    VOLUME_MISSING = "VolumeMissing", "The volume was there and is gone; an empty one is never put in its place.", "Put the file back, or delete the Disk.";
    PROVISIONING = "Provisioning", "The volume is being made or grown.", "";
    IMPORTING = "Importing", "The image is being fetched or copied.", "";
    IMPORT_FAILED = "ImportFailed", "The image could not be fetched; it is tried again.", "Look at the message: the server may be down or the address wrong.";
    IMAGE_REFUSED = "ImageRefused", "The image refers to other files, contradicts itself, is encrypted, or is in a format that is not read.", "Convert it as the message says and make a new Disk.";
    IMAGE_TOO_LARGE = "ImageTooLarge", "The image is larger than the disk.", "Make a Disk of at least the size the message names.";
    DIGEST_MISMATCH = "DigestMismatch", "What was fetched does not have the digest the Disk names.", "Check the checksum and the server.";
    URL_REFUSED = "UrlRefused", "The URL, an address behind it or a redirect is not among what the domain may fetch.", "Use a public https URL, or have an administrator list the prefix in imports.allowedUrls.";
    PATH_REFUSED = "PathRefused", "The path leaves the domain's files directory, or nothing readable is there.", "Name a file inside files/, put there with vireo-node import.";
    NO_SPACE = "NoSpace", "The domain has less free space than the volume and the threshold need.", "Free space, or lower thresholds.blockFreeBytes.";
    NOT_IN_TRASH = "NotInTrash", "The volume to bring back is not in the domain, or belonged to another namespace.", "Look at the sidecars in the domain's trash directory.";
    IN_USE = "InUse", "A process has the volume open.", "Stop what uses it; the message names the volume.";
    REMOVING = "Removing", "The volume is being removed.", "";
    REMOVED = "Removed", "The volume is in the trash, or left in place by Retain.", "";
    NETWORK_NOT_FOUND = "NetworkNotFound", "A Network that the spec names does not exist.", "Create it, or correct the name.";
    DISK_NOT_FOUND = "DiskNotFound", "A Disk that the spec names does not exist.", "Create it, or correct the name.";
    DOMAIN_NOT_FOUND = "DomainNotFound", "A StorageDomain that the spec names does not exist.", "Create it, or correct the name.";
    CLUSTER_NOT_FOUND = "ClusterNotFound", "The HostCluster that the spec names does not exist.", "Create it, or correct the name.";
    VM_NOT_FOUND = "VirtualMachineNotFound", "The VirtualMachine that the spec names does not exist.", "Create it, or correct the name.";
    DISK_IN_USE = "DiskInUse", "A Disk is already used by another VM, and one of the two may write to it.", "Detach it there, or use it read-only in both.";
    DISK_DELETING = "DiskDeleting", "A Disk that the spec names is being deleted.", "Wait, or name another one.";
    WAITING_FOR_HOST = "WaitingForHost", "No host works on the object yet.", "";
    DELETING = "Deleting", "The object is being deleted; the message says what that waits for.", "";
    DOUBLE_RUN = "DoubleRun", "Two hosts say that they run this VM. Nothing is stopped by itself.", "Find out which copy is the good one and stop the other on its host.";
    CLAIM_CONFLICT = "ClaimConflict", "A host holds a grant of this VM that the store does not list and that cannot be adopted.", "Stop the guest on the host the message names, or confirm the stored grant.";
    ADOPTED = "Adopted", "A grant that a host held and the store had forgotten has become the placement again.", "";
    HEARTBEAT_FRESH = "HeartbeatFresh", "The host renews its Lease.", "";
    NOT_JOINED = "NotJoined", "No daemon has reported for this Host yet.", "Run vireo-node join on the machine.";
    DUPLICATE_IDENTITY = "DuplicateIdentity", "Two machines renew the Lease of one Host in turn.", "Shut the copy down and join it under a name of its own.";
    UNSCHEDULABLE = "Unschedulable", "No VM is placed on this host; the message says why.", "";
    HOST_READY = "HostReady", "The host is alive and what it needs is there.", "";
    HOST_NOT_READY = "HostNotReady", "The daemon of the host says that something it needs is missing.", "See the condition the message names.";
    NO_COMMON_MODEL = "NoCommonCpuModel", "The hosts of the cluster share no CPU model.", "Name a model in spec.cpu.baseline, or split the cluster.";
    READY = "Ready", "The object is as wanted.", "";
    NOT_ON_ALL_HOSTS = "NotOnAllHosts", "Some of the hosts that should have it do not; the message names them.", "See the message of each host in status.hosts.";
    NO_HOST_SELECTED = "NoHostSelected", "No joined host is selected.", "Correct hostSelector, or join a host.";
    LOW_SPACE = "LowSpace", "Free space is below a threshold of the domain.", "Free space, or enlarge it.";
    FULL = "Full", "Free space is below blockFreeBytes: no new volume is made.", "Free space, or enlarge it.";
    INITIALIZING = "Initializing", "The marker of the storage domain has not been seen yet.", "";
    ACT_PENDING = "ActPending", "The act has not ended yet.", "";
    ACT_SUCCEEDED = "ActSucceeded", "The act was carried out.", "";
    ACT_FAILED = "ActFailed", "The act was not carried out; the message says why.", "";
    DISK_NOT_READY = "DiskNotReady", "A Disk of the VM is missing, not claimed for it, or its volume is not there yet.", "Look at the Disk the message names.";
    NETWORK_NOT_READY = "NetworkNotReady", "A Network of the VM is missing or not usable on its host.", "Look at the Network the message names.";
    BASELINE_PENDING = "BaselinePending", "The VM's HostCluster is missing or has no CPU baseline yet.", "Create the HostCluster, or name a CPU model in spec.cpu.model.";
    SECRET_NOT_READABLE = "SecretNotReadable", "A Secret of the VM is missing, lacks the key, or may not be read by its host yet.", "Create the Secret the message names; access is given when the VM is placed.";
    STEP_FAILED = "StepFailed", "Something that had to be done for the VM on its host failed; it is tried again.", "The message says what failed; look at the host's log if it goes on.";
    HYPERVISOR_READY = "HypervisorReady", "libvirt answers and guests can be run.", "";
    HYPERVISOR_DOWN = "HypervisorDown", "libvirt on the host does not answer; its guests go on.", "Look at libvirtd (or virtqemud) on the host.";
    LEDGER_UNREADABLE = "LedgerUnreadable", "A file of the host's ledger cannot be used; nothing of the VMs it concerns is started or touched.", "Look at the file the message names under /var/lib/vireo/ledger; restore it, or confirm in writing that the VM does not run and remove it.";
    STORAGE_READY = "StorageReady", "All storage domains the host should reach are usable.", "";
    NETWORK_READY = "NetworkReady", "All networks the host should carry are there.", "";
    PAUSED_IO_ERROR = "PausedIoError", "A disk reported an error and the guest stands still; it is resumed when the disk works again.", "Look at the storage domain the disk lies on.";
    PAUSED_BY_ACTION = "PausedByAction", "An act paused the guest.", "Resume it with a VirtualMachineAction.";
    PAUSED_OUTSIDE = "PausedOutside", "The guest stands still and Vireo did not ask for it: somebody used libvirt's tools, its watchdog fired, or it suspended itself.", "Resume or reset it with a VirtualMachineAction.";
    SUPERSEDED = "Superseded", "Another host holds a newer grant: this copy is paused and nothing is done to it.", "Find out which copy is the good one; the annotation vireo.dev/destroy-superseded with the grant's id ends this one.";
    GRANT_CLASH = "GrantClash", "What runs, the host's ledger and the API name different grants. Nothing is started or stopped by itself.", "Wait for the controller to adopt what runs; if it stays, the message names the grants to compare.";
    GRANT_REFUSED = "GrantRefused", "The host does not start the VM under the grant in its placement.", "The message says why; a new grant by the controller ends it.";
    DOMAIN_NAME_TAKEN = "DomainNameTaken", "A libvirt domain that is not this VM's has its name or uuid.", "Remove that domain, or rename the VM.";
    NOT_ACCEPTED = "NotAccepted", "The controller has not accepted the spec yet.", "See the Accepted condition.";
    STARTED = "Started", "The guest is up.", "";
    GUEST_FOUND = "GuestFound", "A running guest was found and left as it is.", "";
    RESTARTING = "Restarting", "The guest is stopped, or is down, only to be started anew.", "";
    STOPPED_BY_GUEST = "StoppedByGuest", "The guest shut itself down.", "";
    CRASHED = "Crashed", "QEMU died, the guest panicked, or somebody destroyed the domain.", "Look at the guest's console and at /var/log/libvirt/qemu on its host.";
    START_FAILED = "StartFailed", "The guest could not be started; the message is libvirt's.", "Correct what the message names; it is tried again.";
    RELEASED = "Released", "The host has closed its grant: nothing runs under it and nothing will.", "";
    HOST_RESTARTED = "HostRestarted", "The guest went down with its host, which has started anew.", "";
    PROVISIONED = "Provisioned", "Everything the VM needs on its host is there.", "";
    AGENT_CONNECTED = "AgentConnected", "The guest agent answers.", "";
    AGENT_MISSING = "AgentMissing", "No guest agent answers.", "Install and start qemu-guest-agent in the guest.";
    EDITS_WAIT = "EditsWait", "Edits of the spec wait for the next boot.", "Restart the guest, from inside or with a VirtualMachineAction.";
    UP_TO_DATE = "UpToDate", "The running guest has everything its spec declares.", "";
    NOT_SUPPORTED = "NotSupported", "This version cannot do it.", "";
    CONTRADICTORY_RULES = "ContradictoryRules", "Hard rules of affinity groups cannot all be kept; the message names the groups.", "Change one of the groups the message names.";
    RULE_BROKEN = "RuleBroken", "VMs run where a hard rule of the affinity group does not want them; they are left running.", "Restart the VMs the message names: a start heeds the rules.";
    WAITING = "Waiting", "Something is waited for; the message says what.", "";
}
