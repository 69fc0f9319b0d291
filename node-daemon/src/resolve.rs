//! Makes an [`Intent`] from API objects: every name becomes a path, an address or a uid, and what is missing is named.
//! Chooses nothing that the spec, the cluster or this host does not already say.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use node_plan::{
    intent::{
        CpuChoice, Fault, Intent, KernelBoot, Machine, MachineDisk, MachineFirmware, MachineNic, NicAttach,
        PendingAct, Policy, Seed, StateHome, ValidatedSpec, VmRef, Volume, Wait, Wanted,
    },
    network::nat_network_name,
    storage::path::RelativePath,
};
use vireo_crds::{
    reasons,
    units::Mac,
    v1alpha1::{
        Accelerator, Architecture, Clock, CpuModel, Disk, DiskBus, DiskCache, DiskPhase, Firmware, Graphics,
        Hardware, HostNetwork, HostStorageDomain, StorageDomain, VirtualMachine, VirtualMachineAction,
        VmDisk,
    },
};

use crate::{
    objects::{DiskSight, Key, Objects},
    seed_data::{SeedData, digest},
};

/// First libvirt that keeps a TPM's state in a directory of our choice.
pub const TPM_SOURCE_SINCE: u32 = 10_010_000;

/// What this host brings to the resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Name of the host.
    pub host: String,
    /// What accelerates guests here.
    pub accelerator: Accelerator,
    /// libvirt can keep TPM state where we say.
    pub tpm_source: bool,
    /// Readiness of storage domains on this host.
    pub domains: Vec<HostStorageDomain>,
    /// Readiness of networks on this host.
    pub networks: Vec<HostNetwork>,
    /// Directory of this host's own files for VMs.
    pub state_dir: String,
    /// Directory of sockets.
    pub sockets_dir: String,
    /// Where libvirt keeps TPM state if it is not told.
    pub libvirt_tpm_dir: String,
}

/// Disks a VM refers to, by name in the spec.
pub fn disk_keys(vm: &VirtualMachine) -> BTreeMap<String, Key> {
    let namespace = vm.namespace().unwrap_or_default();
    let name = vm.name_any();
    vm.spec
        .disks
        .iter()
        .filter_map(|disk| Some((disk.name.clone(), (namespace.clone(), disk_object(&name, disk)?))))
        .collect()
}

/// Name of the Disk object behind a disk of a VM; none for an empty drive.
fn disk_object(vm: &str, disk: &VmDisk) -> Option<String> {
    let VmDisk { name, disk, template, cdrom, ephemeral, .. } = disk;
    disk.as_ref()
        .map(|disk| disk.name.clone())
        .or_else(|| template.as_ref().map(|_| format!("{vm}-{name}")))
        .or_else(|| cdrom.as_ref().and_then(|cdrom| cdrom.disk.clone()))
        .or_else(|| ephemeral.as_ref().map(|layer| layer.disk.clone()))
}

/// Makes the Intent of a VM placed here. None if the object lacks what makes it one.
pub fn resolve(
    vm: &VirtualMachine,
    objects: &Objects,
    local: &Local,
    seed: &SeedData,
    kept_hardware: Option<Hardware>,
    acts: &[std::sync::Arc<VirtualMachineAction>],
) -> Option<Intent> {
    let status = vm.status.as_ref()?;
    let placement = status.placement.as_ref()?;
    let vm_ref = vm_ref(vm)?;
    let hardware = status.hardware.clone().or(kept_hardware);
    let mut gaps = Gaps::default();
    let (wanted, storage_ready) = match ValidatedSpec::new(&vm.spec) {
        Err(faults) => {
            gaps.faults = faults;
            (None, true)
        }
        Ok(spec) => {
            let resolver = Resolver { vm, vm_ref: &vm_ref, objects, local, hardware: hardware.as_ref() };
            let storage_ready = resolver.storage_ready();
            (resolver.wanted(spec, placement.generation, seed, &mut gaps), storage_ready)
        }
    };
    gaps.waits.sort();
    gaps.waits.dedup();
    Some(Intent {
        vm: vm_ref,
        grant: placement.grant(),
        listed: objects.is_listed_grant(&placement.id),
        generation: vm.metadata.generation.unwrap_or_default(),
        accepted_generation: placement.generation,
        deleting: vm.metadata.deletion_timestamp.is_some(),
        policy: Policy::of(&vm.spec),
        wanted,
        waits: gaps.waits,
        faults: gaps.faults,
        acts: acts.iter().filter_map(|act| pending(act)).collect(),
        hardware,
        reported: status.runtime.clone().filter(|runtime| Some(&runtime.vm_uid) == vm.uid().as_ref()),
        storage_ready,
    })
}

/// Identity of a VM object.
pub fn vm_ref(vm: &VirtualMachine) -> Option<VmRef> {
    Some(VmRef { uid: vm.uid()?, namespace: vm.namespace()?, name: vm.name_any() })
}

/// UUID of a VM's domain.
pub fn domain_uuid(vm: &VirtualMachine) -> Option<String> {
    vm.spec.identity.as_ref().and_then(|identity| identity.uuid.clone()).or_else(|| vm.uid())
}

fn pending(act: &VirtualMachineAction) -> Option<PendingAct> {
    let status = act.status.as_ref()?;
    if status.phase.is_some_and(|phase| phase.is_final()) {
        return None;
    }
    Some(PendingAct {
        name: act.name_any(),
        uid: act.uid()?,
        act: status.act.or_else(|| act.spec.act())?,
        grant_id: status.grant_id.clone()?,
    })
}

#[derive(Default)]
struct Gaps {
    waits: Vec<Wait>,
    faults: Vec<Fault>,
}

impl Gaps {
    fn wait(&mut self, reason: &str, message: impl Into<String>) {
        self.waits.push(Wait::new(reason, message));
    }

    fn fault(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::new(path, message));
    }
}

struct Resolver<'a> {
    vm: &'a VirtualMachine,
    vm_ref: &'a VmRef,
    objects: &'a Objects,
    local: &'a Local,
    hardware: Option<&'a Hardware>,
}

impl Resolver<'_> {
    fn wanted(
        &self,
        spec: ValidatedSpec,
        generation: i64,
        seed: &SeedData,
        gaps: &mut Gaps,
    ) -> Option<Wanted> {
        let machine = self.machine(gaps);
        let installation_id = self.objects.installation_id();
        if installation_id.is_none() {
            gaps.wait(
                reasons::BASELINE_PENDING,
                format!(
                    "HostCluster {}: the controller has not written its status yet",
                    self.vm.spec.cluster
                ),
            );
        }
        let seed = self.seed(seed, gaps);
        let state = self.state_home(gaps);
        Some(Wanted {
            generation,
            spec,
            machine: machine?,
            seed: seed?,
            state: state?,
            installation_id: installation_id?,
        })
    }

    fn machine(&self, gaps: &mut Gaps) -> Option<Machine> {
        let spec = &self.vm.spec;
        let architecture = spec.architecture.unwrap_or_default();
        let cpu = self.cpu(gaps);
        let disks: Vec<_> = spec.disks.iter().map(|disk| self.disk(disk, gaps)).collect();
        let nics: Vec<_> = spec.interfaces.iter().map(|nic| self.nic(nic, gaps)).collect();
        let kernel = self.kernel(gaps);
        let firmware = self.firmware(architecture, gaps);
        let memory = spec.memory.size.bytes().ok()?;
        Some(Machine {
            uuid: domain_uuid(self.vm)?,
            serial: spec.identity.as_ref().and_then(|identity| identity.serial.clone()),
            hostname: self.hostname(),
            architecture,
            accelerator: self.local.accelerator,
            machine_type: self
                .hardware
                .map(|hardware| hardware.machine_type.clone())
                .filter(|kept| !kept.is_empty())
                .or_else(|| spec.machine.clone())
                .unwrap_or_else(|| default_machine(architecture).into()),
            sockets: spec.cpu.sockets,
            cores: spec.cpu.cores,
            threads: spec.cpu.threads,
            cpu: cpu?,
            memory,
            firmware: firmware?,
            tpm: spec.tpm.is_some(),
            disks: disks.into_iter().collect::<Option<_>>()?,
            nics: nics.into_iter().collect::<Option<_>>()?,
            kernel: kernel?,
            vnc_socket: match spec.graphics {
                Graphics::Vnc(_) => Some(format!("{}/{}.vnc", self.local.sockets_dir, self.vm_ref.uid)),
                Graphics::None(_) => None,
            },
            serial_console: spec.serial_console,
            guest_agent: spec.guest_agent,
            rng: spec.rng.is_some(),
            watchdog: spec.watchdog.as_ref().map(|watchdog| watchdog.action),
            timezone: match &spec.clock {
                Clock::Utc(_) => None,
                Clock::Timezone(zone) => Some(zone.name.clone()),
            },
        })
    }

    fn hostname(&self) -> String {
        self.vm.spec.hostname.clone().unwrap_or_else(|| self.vm_ref.name.clone())
    }

    fn cpu(&self, gaps: &mut Gaps) -> Option<CpuChoice> {
        let cluster = self.objects.cluster(&self.vm.spec.cluster);
        let baseline = cluster.as_ref().and_then(|cluster| cluster.status.as_ref()?.baseline.clone());
        let choice = CpuChoice::resolve(&self.vm.spec.cpu.model, self.local.accelerator, baseline.as_deref());
        if choice.is_none() {
            let name = &self.vm.spec.cluster;
            gaps.wait(reasons::BASELINE_PENDING, match (&cluster, &self.vm.spec.cpu.model) {
                (None, _) => format!("HostCluster {name} does not exist; create it or name another in spec.cluster"),
                (Some(_), CpuModel::Cluster(_)) => format!("HostCluster {name} has no CPU baseline yet; name a model in spec.cpu.model or wait for its hosts"),
                (Some(_), _) => format!("HostCluster {name} is not ready"),
            });
        }
        choice
    }

    fn disk(&self, disk: &VmDisk, gaps: &mut Gaps) -> Option<MachineDisk> {
        let cdrom = disk.cdrom.is_some();
        let read_only = disk.read_only || cdrom;
        let volume = match disk_object(&self.vm_ref.name, disk) {
            None => None,
            Some(name) => Some(self.volume(disk, name, gaps)?),
        };
        let serial = disk.serial.clone().unwrap_or_else(|| {
            let from = volume.as_ref().map_or(disk.name.as_str(), |volume| volume.disk_uid.as_str());
            from.replace('-', "").chars().take(20).collect()
        });
        Some(MachineDisk {
            name: disk.name.clone(),
            cdrom,
            overlay: disk.ephemeral.as_ref().map(|_| {
                format!("{}/overlays/{}-{}.qcow2", self.local.state_dir, self.vm_ref.uid, disk.name)
            }),
            volume,
            bus: disk.bus.unwrap_or(if cdrom { DiskBus::Scsi } else { DiskBus::Virtio }),
            boot_order: disk.boot_order,
            read_only,
            cache: match disk.cache {
                // A new layer on this host's own file system may not know O_DIRECT, and is thrown away anyway.
                DiskCache::None if disk.ephemeral.is_some() => DiskCache::Writeback,
                cache => cache,
            },
            serial,
        })
    }

    fn volume(&self, disk: &VmDisk, name: String, gaps: &mut Gaps) -> Option<Volume> {
        let key = (self.vm_ref.namespace.clone(), name);
        let object = match self.objects.disk(&key) {
            DiskSight::Seen(object) => object,
            DiskSight::Absent => {
                gaps.wait(
                    reasons::DISK_NOT_READY,
                    format!(
                        "Disk {}/{} does not exist; create it or correct spec.disks[{}]",
                        key.0, key.1, disk.name
                    ),
                );
                return None;
            }
            DiskSight::Unread => {
                gaps.wait(reasons::DISK_NOT_READY, format!("Disk {}/{} is being looked up", key.0, key.1));
                return None;
            }
        };
        self.check_disk(&object, gaps);
        let domain = self.domain(&object.spec.storage_domain, gaps)?;
        let uid = object.uid()?;
        let Some(extension) = object.spec.format.qemu_name() else {
            gaps.fault(
                format!("spec.disks[{}]", disk.name),
                format!("Disk {} has a format this version does not know; upgrade vireo-node", key.1),
            );
            return None;
        };
        let file = object
            .status
            .as_ref()
            .and_then(|status| status.volume.clone())
            .unwrap_or_else(|| format!("{uid}.{extension}"));
        let volumes = format!("{}/volumes", domain.spec.directory.path);
        Some(Volume {
            path: format!("{volumes}/{file}"),
            token: format!("{volumes}/{uid}.token"),
            format: object.spec.format,
            disk: key.1,
            disk_uid: uid,
        })
    }

    /// Names what keeps a VM from using a Disk that exists.
    fn check_disk(&self, disk: &Disk, gaps: &mut Gaps) {
        let name = disk.name_any();
        let status = disk.status.clone().unwrap_or_default();
        if status.phase != Some(DiskPhase::Ready) {
            let why = vireo_crds::condition::get(&status.conditions, vireo_crds::condition::kind::READY)
                .map(|c| c.message.clone());
            let why =
                why.filter(|why| !why.is_empty()).unwrap_or_else(|| "its volume is not there yet".into());
            gaps.wait(reasons::DISK_NOT_READY, format!("Disk {name}: {why}"));
        }
        if !status.attachments.iter().any(|claim| claim.vm_uid == self.vm_ref.uid) {
            let by = status
                .attachments
                .first()
                .map(|claim| format!("; VM {} has claimed it", claim.vm))
                .unwrap_or_default();
            gaps.wait(reasons::DISK_NOT_READY, format!("Disk {name} is not claimed for this VM{by}"));
        }
        let is_local = self
            .objects
            .domain(&disk.spec.storage_domain)
            .is_some_and(|domain| !domain.spec.directory.shared);
        if let Some(host) = status.local_host.filter(|host| is_local && *host != self.local.host) {
            gaps.wait(
                reasons::DISK_NOT_READY,
                format!("Disk {name} lies on host {host}; this VM can only run there"),
            );
        }
    }

    /// The domain of this name, if it exists; a wait if it does not work on this host.
    fn domain(&self, name: &str, gaps: &mut Gaps) -> Option<std::sync::Arc<StorageDomain>> {
        let Some(domain) = self.objects.domain(name) else {
            gaps.wait(
                reasons::DOMAIN_NOT_READY,
                format!("StorageDomain {name} does not exist; create it or name another"),
            );
            return None;
        };
        let here = self.local.domains.iter().find(|here| Some(&here.uid) == domain.uid().as_ref());
        if !here.is_some_and(|here| here.ready) {
            let why = here
                .and_then(|here| here.message.clone())
                .unwrap_or_else(|| "it has not been looked at yet".into());
            gaps.wait(
                reasons::DOMAIN_NOT_READY,
                format!("StorageDomain {name} on host {}: {why}", self.local.host),
            );
        }
        Some(domain)
    }

    fn storage_ready(&self) -> bool {
        let disks = disk_keys(self.vm).into_values().filter_map(|key| match self.objects.disk(&key) {
            DiskSight::Seen(disk) => Some(disk.spec.storage_domain.clone()),
            DiskSight::Absent | DiskSight::Unread => None,
        });
        let domains: BTreeSet<String> = disks.chain(self.state_domain()).collect();
        domains.iter().all(|name| self.local.domains.iter().any(|here| here.name == *name && here.ready))
    }

    fn nic(&self, nic: &vireo_crds::v1alpha1::Interface, gaps: &mut Gaps) -> Option<MachineNic> {
        let mac = match &nic.mac_address {
            Some(text) => match text.parse::<Mac>() {
                Ok(mac) => Some(mac),
                Err(error) => {
                    gaps.fault(format!("spec.interfaces[{}].macAddress", nic.name), error.to_string());
                    None
                }
            },
            None => self.derived_mac(&nic.name, gaps),
        };
        let Some(network) = self.objects.network(&nic.network) else {
            gaps.wait(
                reasons::NETWORK_NOT_READY,
                format!(
                    "Network {} does not exist; create it or correct spec.interfaces[{}].network",
                    nic.network, nic.name
                ),
            );
            return None;
        };
        let here = self.local.networks.iter().find(|here| Some(&here.uid) == network.uid().as_ref());
        if !here.is_some_and(|here| here.ready) {
            let why = here
                .and_then(|here| here.message.clone())
                .unwrap_or_else(|| "it has not been looked at yet".into());
            gaps.wait(
                reasons::NETWORK_NOT_READY,
                format!("Network {} on host {}: {why}", nic.network, self.local.host),
            );
        }
        let attach = match &network.spec.bridge {
            Some(bridge) => NicAttach::Bridge(bridge.name.clone()),
            None => NicAttach::LibvirtNetwork(nat_network_name(&network.uid()?)),
        };
        Some(MachineNic {
            name: nic.name.clone(),
            network: nic.network.clone(),
            attach,
            model: nic.model,
            mac: mac?,
            link: nic.link,
            boot_order: nic.boot_order,
            mtu: Some(network.spec.mtu).filter(|mtu| *mtu != 1500),
        })
    }

    fn derived_mac(&self, nic: &str, gaps: &mut Gaps) -> Option<Mac> {
        // An address once given is kept, even if the cluster's prefix could change.
        let kept = self.hardware.and_then(|hardware| {
            let device =
                hardware.devices.iter().find(|device| device.kind == "interface" && device.name == nic)?;
            device.mac.as_ref()?.parse().ok()
        });
        if kept.is_some() {
            return kept;
        }
        let Some(cluster) = self.objects.cluster(&self.vm.spec.cluster) else {
            gaps.wait(
                reasons::BASELINE_PENDING,
                format!(
                    "HostCluster {} does not exist; create it or name another in spec.cluster",
                    self.vm.spec.cluster
                ),
            );
            return None;
        };
        match Mac::parse_prefix(&cluster.spec.mac_prefix) {
            Ok(prefix) => Some(Mac::derive(prefix, &self.vm_ref.uid, nic)),
            Err(error) => {
                gaps.wait(
                    reasons::BASELINE_PENDING,
                    format!("HostCluster {}: spec.macPrefix: {error}", self.vm.spec.cluster),
                );
                None
            }
        }
    }

    /// None: something is missing. Some(None): no kernel is booted directly.
    fn kernel(&self, gaps: &mut Gaps) -> Option<Option<KernelBoot>> {
        let Some(boot) = &self.vm.spec.direct_kernel_boot else { return Some(None) };
        let domain = self.domain(&boot.storage_domain, gaps);
        let mut file = |field: &str, path: &str| match RelativePath::parse(path) {
            Ok(path) => Some(path.as_str().to_owned()),
            Err(error) => {
                gaps.fault(format!("spec.directKernelBoot.{field}"), error.to_string());
                None
            }
        };
        let kernel = file("kernel", &boot.kernel);
        let initrd = boot.initrd.as_ref().map(|path| file("initrd", path));
        let files = format!("{}/files", domain?.spec.directory.path);
        Some(Some(KernelBoot {
            kernel: format!("{files}/{}", kernel?),
            initrd: match initrd {
                None => None,
                Some(path) => Some(format!("{files}/{}", path?)),
            },
            cmdline: boot.cmdline.clone(),
        }))
    }

    fn firmware(&self, architecture: Architecture, gaps: &mut Gaps) -> Option<MachineFirmware> {
        let uefi = match &self.vm.spec.firmware {
            Some(Firmware::Uefi(uefi)) => uefi.clone(),
            Some(Firmware::Bios(_)) => return Some(MachineFirmware::Bios),
            None if architecture == Architecture::x86_64 => return Some(MachineFirmware::Bios),
            None => vireo_crds::v1alpha1::Uefi::default(),
        };
        let Some(dir) = self.state_dir(gaps) else {
            gaps.fault("spec.state", "UEFI keeps its variables on a storage domain; give the VM a disk or name a domain in spec.state.storageDomain");
            return None;
        };
        Some(MachineFirmware::Uefi { secure_boot: uefi.secure_boot, nvram: format!("{dir}/nvram.fd") })
    }

    fn state_domain(&self) -> Option<String> {
        if let Some(state) = &self.vm.spec.state {
            return Some(state.storage_domain.clone());
        }
        self.vm.spec.disks.iter().find_map(|disk| {
            if let Some(template) = &disk.template {
                return Some(template.storage_domain.clone());
            }
            let name = disk.disk.as_ref()?.name.clone();
            match self.objects.disk(&(self.vm_ref.namespace.clone(), name)) {
                DiskSight::Seen(disk) => Some(disk.spec.storage_domain.clone()),
                DiskSight::Absent | DiskSight::Unread => None,
            }
        })
    }

    fn state_dir(&self, gaps: &mut Gaps) -> Option<String> {
        let domain = self.domain(&self.state_domain()?, gaps)?;
        Some(format!("{}/vms/{}", domain.spec.directory.path, self.vm_ref.uid))
    }

    /// None: something is missing. Some(None): the VM keeps nothing beside its disks.
    fn state_home(&self, gaps: &mut Gaps) -> Option<Option<StateHome>> {
        let needed = self.vm.spec.tpm.is_some() || matches!(self.vm.spec.firmware, Some(Firmware::Uefi(_)));
        if self.state_domain().is_none() {
            if self.vm.spec.tpm.is_some() {
                gaps.fault("spec.state", "a TPM keeps its state on a storage domain; give the VM a disk or name a domain in spec.state.storageDomain");
            }
            return if needed { None } else { Some(None) };
        }
        let dir = self.state_dir(gaps)?;
        let own = self.vm.spec.tpm.is_some() && !self.local.tpm_source;
        let local_tpm = own
            .then(|| Some(format!("{}/{}/tpm2", self.local.libvirt_tpm_dir, domain_uuid(self.vm)?)))
            .flatten();
        Some(Some(StateHome { dir, local_tpm }))
    }

    /// None: something is missing. Some(None): the VM has no seed image.
    fn seed(&self, seed: &SeedData, gaps: &mut Gaps) -> Option<Option<Seed>> {
        match seed {
            SeedData::None => Some(None),
            SeedData::Kept(seed) => Some(Some(seed.clone())),
            SeedData::Missing(wait) => {
                gaps.waits.push(wait.clone());
                None
            }
            SeedData::Read(content) => Some(Some(Seed {
                path: format!("{}/seeds/{}.iso", self.local.state_dir, self.vm_ref.uid),
                digest: digest(content),
            })),
        }
    }
}

fn default_machine(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::aarch64 => "virt",
        Architecture::x86_64 | Architecture::Unknown => "q35",
    }
}
