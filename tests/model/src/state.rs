//! One state of the explored fleet, in small numbers: store, controllers, hosts, and what may still go wrong.

/// A grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grant {
    pub host: u8,
    pub inc: u8,
    pub epoch: u8,
    /// 0 stands for a new one, until it gets its own.
    pub id: u8,
}

/// `status.placement`, without its evidence, which is judged when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Placement {
    pub grant: Grant,
    pub generation: u8,
    pub last: u8,
}

/// Why a guest went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    ByGuest,
    BySpec,
    Crashed,
    HostLost,
    Other,
}

/// `status.runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Runtime {
    pub grant: Grant,
    pub released: bool,
    pub on: bool,
    pub cause: Option<Cause>,
    pub generation: Option<u8>,
    pub pending: bool,
}

/// What a VM is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spec {
    pub halted: bool,
    pub disk: bool,
}

/// A VirtualMachine. Its content stands for its version: a write is conditional on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vm {
    pub uid: u8,
    pub spec: Spec,
    pub generation: u8,
    pub deleting: bool,
    pub finalizer: bool,
    pub placement: Option<Placement>,
    pub runtime: Option<Runtime>,
    /// Grant whose end somebody confirmed.
    pub confirm: Option<u8>,
}

/// A claim of an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim {
    pub uid: u8,
    pub slot: u8,
    pub grant: Grant,
    pub released: bool,
    pub running: bool,
    pub highest: u8,
}

/// A host's answer to a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attestation {
    pub session: u8,
    pub inc: u8,
    pub claims: Vec<Claim>,
}

/// An earlier incarnation; whether it was in the present boot.
pub type Past = (u8, bool);

/// A Host object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostObject {
    pub inc: u8,
    pub past: Vec<Past>,
    pub attestation: Option<Attestation>,
    /// Incarnation whose end somebody confirmed.
    pub confirm: Option<u8>,
    /// VMs whose guest runs there unexplained.
    pub orphans: Vec<u8>,
}

/// What the API server holds, or what a controller has seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Objects {
    /// By name.
    pub vms: Vec<Option<Vm>>,
    pub hosts: Vec<HostObject>,
    /// Claims of the one Disk: uid and name of the VM.
    pub claims: Vec<(u8, u8)>,
}

/// What a controller has seen of a host's Lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Life {
    #[default]
    Unknown,
    Fresh(u8),
    Silent(u8),
}

/// A controller in its session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session {
    pub nonce: u8,
    pub seen: Objects,
    pub lives: Vec<Life>,
    /// uids that were there when it began.
    pub preexisting: Vec<u8>,
    pub granted: Vec<u8>,
    pub attested: Vec<u8>,
    pub old_confirmations: Vec<Option<u8>>,
}

/// Where a held grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeldState {
    Accepted,
    Activated,
    Released,
}

/// An accepted grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub grant: Grant,
    pub state: HeldState,
    pub inc: u8,
}

/// A ledger entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub highest: u8,
    pub held: Option<Held>,
    pub wanted: Option<(u8, Spec)>,
    pub volume: bool,
    pub up: bool,
    pub stopping: Option<bool>,
    pub last: Option<Option<Cause>>,
    pub crashed: bool,
    pub superseded: bool,
    pub reboot_applies: bool,
}

/// A QEMU process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub grant: Grant,
    pub generation: u8,
    pub spec: Spec,
    pub paused: bool,
    /// libvirt has lost sight of it.
    pub disowned: bool,
}

/// How a guest ended, until the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exit {
    Crashed,
    PoweredOff,
    Destroyed,
}

/// What a daemon knows of a VM's object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sight {
    #[default]
    None,
    Here(Vm),
    Disappeared,
    Gone,
    Elsewhere(Grant),
}

/// One VM on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Local {
    pub uid: u8,
    pub slot: u8,
    pub entry: Option<Entry>,
    pub process: Option<Process>,
    pub exit: Option<Exit>,
    pub sight: Sight,
}

/// A daemon process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Daemon {
    pub connected: bool,
    pub listed: bool,
    pub nonce: u8,
    pub attestation: Option<Attestation>,
    pub claims: Vec<(u8, u8)>,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Machine {
    pub powered: bool,
    pub cut: bool,
    /// Present incarnation; 0: its daemon has not opened the ledger yet.
    pub inc: u8,
    pub past: Vec<Past>,
    pub vms: Vec<Local>,
    pub daemon: Daemon,
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Budget {
    /// Faults and edits in all; each also has its own bound.
    pub any: u8,
    pub sessions: u8,
    pub restore: u8,
    pub backup: u8,
    pub power: u8,
    pub daemon: u8,
    pub cut: u8,
    pub guest: u8,
    pub disown: u8,
    pub ledger: u8,
    pub confirm: u8,
    pub lie: u8,
    pub edit: u8,
    pub delete: u8,
    pub recreate: u8,
    pub attach: u8,
    pub slow: u8,
}

/// A placement write on its way: the object it is conditional on, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flight {
    pub slot: u8,
    pub nonce: u8,
    pub before: Vm,
    pub step: crate::controller::Step,
}

/// What only the checker knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ghost {
    pub released: Vec<u8>,
    pub ended: Vec<u8>,
    /// uids whose spec or deletion has asked for a stop.
    pub may_stop: Vec<u8>,
    /// Hosts about which somebody lies.
    pub lie: Option<u8>,
    pub broken: Option<Broken>,
}

/// Number of the invariant, as in the protocol, and what happened.
pub type Broken = (u8, &'static str);

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    pub store: Objects,
    pub nonce: u8,
    pub backup: (Objects, u8),
    pub sessions: Vec<Option<Session>>,
    pub flight: Option<Flight>,
    pub machines: Vec<Machine>,
    /// Token of the one volume: VM uid and grant.
    pub token: Option<(u8, Grant)>,
    pub left: Budget,
    pub ghost: Ghost,
    pub next_id: u8,
    pub next_inc: u8,
    pub next_nonce: u8,
    pub next_uid: u8,
}
