//! Why a host cannot take a VM, in words: a short phrase for conditions, and what to do about it for `explain`.

/// Why a host cannot take a VM. The order of the variants is the order in which equally common reasons are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack {
    ClusterInMaintenance(String),
    Leaving,
    NotNamed(String),
    NotSelected,
    NotJoined,
    Silent,
    NotHeardYet,
    Duplicate,
    ConfirmedOver,
    Unschedulable,
    Hypervisor(String),
    Architecture(&'static str),
    Feature(&'static str),
    CpuModel(String),
    DiskElsewhere { disk: String, host: String },
    Domain { name: String, why: String },
    Network { name: String, why: String },
    NotWith { group: String, vm: String, host: String },
    NotApart { group: String, vm: String },
    NotOn { group: String },
    NotOff { group: String },
    Memory { need: i64, free: i64 },
    Cpus { need: i64, free: i64 },
}

impl Lack {
    /// The same without what differs from host to host, so that hosts of one reason are told together.
    pub fn group(&self) -> Self {
        match self {
            Self::Memory { need, .. } => Self::Memory { need: *need, free: 0 },
            Self::Cpus { need, .. } => Self::Cpus { need: *need, free: 0 },
            Self::NotApart { group, .. } => Self::NotApart { group: group.clone(), vm: String::new() },
            other => other.clone(),
        }
    }

    /// What is wrong with one host or `many`, as the end of a sentence that begins with their names; `each` is what
    /// differs between them.
    pub fn phrase(&self, many: bool, each: &str) -> String {
        let verb = |one: &'static str, more: &'static str| if many { more } else { one };
        let (is, has, lacks, does) =
            (verb("is", "are"), verb("has", "have"), verb("lacks", "lack"), verb("does", "do"));
        let because = |why: &str| if why.is_empty() { String::new() } else { format!(" ({why})") };
        match self {
            Self::ClusterInMaintenance(cluster) => {
                format!("{} no new VM while HostCluster {cluster} is in maintenance", verb("takes", "take"))
            }
            Self::Leaving => format!("{is} being deleted"),
            Self::NotNamed(named) => format!("{is} not {named}, which scheduling.hostName asks for"),
            Self::NotSelected => format!("{lacks} the labels of scheduling.hostSelector"),
            Self::NotJoined => format!("{has} not joined"),
            Self::Silent => format!("{is} silent"),
            Self::NotHeardYet => format!("{has} not been heard of yet"),
            Self::Duplicate => format!("{is} claimed by two machines"),
            Self::ConfirmedOver => format!(
                "{has} been confirmed as stopped; restart the daemon's machine or remove the annotation"
            ),
            Self::Unschedulable => format!("{is} not schedulable"),
            Self::Hypervisor(why) => format!("{has} no working hypervisor{}", because(why)),
            Self::Architecture(wanted) => format!("{is} not {wanted}"),
            Self::Feature(feature) => format!("{lacks} {feature}"),
            Self::CpuModel(model) => format!("{lacks} CPU model {model}"),
            Self::DiskElsewhere { disk, host } => {
                format!("{does} not have disk {disk}, which lies on {host}")
            }
            Self::Domain { name, why } => format!("{does} not have storage domain {name}{}", because(why)),
            Self::Network { name, why } => format!("{does} not have network {name}{}", because(why)),
            Self::NotWith { group, vm, host } => {
                format!("{does} not run {vm}, which is on {host} (AffinityGroup {group})")
            }
            Self::NotApart { group, .. } => {
                format!("already {} {each} (AffinityGroup {group})", verb("runs", "run"))
            }
            Self::NotOn { group } => {
                format!("{is} not among the hosts of AffinityGroup {group}")
            }
            Self::NotOff { group } => {
                format!("{is} among the hosts that AffinityGroup {group} excludes")
            }
            Self::Memory { need, .. } => {
                format!("{lacks} {} of memory ({each} free)", asked(*need))
            }
            Self::Cpus { need, .. } => format!("{lacks} {need} vCPUs ({each} free)"),
        }
    }

    /// What differs from host to host: what is free, or who is there.
    pub fn differing(&self) -> String {
        match self {
            Self::Memory { need, free } => there(*free, *need),
            Self::Cpus { free, .. } => free.to_string(),
            Self::NotApart { vm, .. } => vm.clone(),
            _ => String::new(),
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self, host: &str) -> String {
        match self {
            Self::ClusterInMaintenance(cluster) => {
                format!("choose another policy in scheduling.policy of HostCluster {cluster}")
            }
            Self::Leaving => format!("wait, and create Host {host} again if it is to stay"),
            Self::NotNamed(_) => "change or remove spec.scheduling.hostName of the VM".into(),
            Self::NotSelected => {
                format!("label Host {host}, or change spec.scheduling.hostSelector of the VM")
            }
            Self::NotJoined => format!("run vireo-node join on {host}"),
            Self::Silent => format!("check {host}, its daemon and its network"),
            Self::NotHeardYet => format!("wait for the daemon of {host}"),
            Self::Duplicate => "shut the copy down and join it under a name of its own".into(),
            Self::ConfirmedOver => format!("restart {host}, or remove the annotation from its Host"),
            Self::Unschedulable => format!("set spec.schedulable of Host {host} to true"),
            Self::Hypervisor(_) => format!("look at libvirtd (or virtqemud) on {host}"),
            Self::Architecture(_) => "add a host of that architecture, or change spec.architecture".into(),
            Self::Feature(feature) => {
                format!("install what {feature} needs on {host}, or ask for less")
            }
            Self::CpuModel(_) => "name another model in spec.cpu.model or in the HostCluster".into(),
            Self::DiskElsewhere { disk, .. } => format!("let the VM use {disk} from shared storage"),
            Self::Domain { name, .. } => {
                format!("make StorageDomain {name} ready on {host}: see its entry in status.hosts")
            }
            Self::Network { name, .. } => {
                format!("make Network {name} ready on {host}: see its entry in status.hosts")
            }
            Self::NotWith { group, vm, .. } => {
                format!("stop {vm}, or change vmRule of AffinityGroup {group}")
            }
            Self::NotApart { group, vm } => {
                format!("stop {vm}, add a host, or change vmRule of AffinityGroup {group}")
            }
            Self::NotOn { group } | Self::NotOff { group } => {
                format!("change hostRule of AffinityGroup {group}, or the labels of Host {host}")
            }
            Self::Memory { .. } => {
                format!(
                    "stop a VM on {host}, ask for less, or raise memory.overcommitPercent of the HostCluster"
                )
            }
            Self::Cpus { .. } => {
                format!("stop a VM on {host}, ask for less, or raise cpu.overcommit of the HostCluster")
            }
        }
    }
}

fn positive(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

/// Bytes that are asked for, never shown as less than they are: 2124Mi are `2.1Gi`.
pub(crate) fn asked(bytes: i64) -> String {
    in_tenths(positive(bytes), positive(bytes), true)
}

/// Bytes that are there, never shown as more than they are, in the unit in which `like` is shown, so that the two can
/// be compared at a glance.
fn there(bytes: i64, like: i64) -> String {
    in_tenths(positive(bytes), positive(like), false)
}

fn in_tenths(bytes: u64, like: u64, up: bool) -> String {
    let units = [("Ti", 1u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let Some((suffix, unit)) = units.into_iter().find(|(_, unit)| like >= *unit) else {
        return bytes.to_string();
    };
    let exact = u128::from(bytes) * 10;
    let tenths = if up { exact.div_ceil(u128::from(unit)) } else { exact / u128::from(unit) };
    if tenths.is_multiple_of(10) {
        format!("{}{suffix}", tenths / 10)
    } else {
        format!("{}.{}{suffix}", tenths / 10, tenths % 10)
    }
}
