//! The libvirt documents of Vireo: typed, rendered, read back, compared.
//!
//! A [`DomainConfig`] holds the fields Vireo owns and nothing else. What libvirt fills in by itself (aliases of its
//! own devices, paths of ptys, seclabels, expanded CPU features) is neither written nor read, so it never counts as
//! drift. Text of XML is never compared and never put together by hand.

mod address;
mod balloon;
pub mod build;
pub mod capabilities;
mod channel;
mod check;
mod clock;
mod compare;
mod controller;
mod cpu;
mod disk;
mod domain;
mod element;
mod features;
mod graphics;
pub mod interface;
mod lifecycle;
pub mod live;
mod memory;
pub mod metadata;
pub mod network;
pub mod observe;
mod os;
mod read;
mod rng;
mod serial;
mod sysinfo;
mod token;
mod tpm;
mod video;
mod watchdog;

pub use address::{DriveAddress, PciAddress};
pub use balloon::Balloon;
pub use channel::{AGENT_CHANNEL, Channel};
pub use clock::Clock;
pub use compare::{FieldDiff, compare};
pub use controller::{Controller, ControllerKind};
pub use cpu::{Cpu, CpuMode};
pub use disk::{BackingFile, Disk, DiskAddress, DiskSource, ImageFormat, disk_alias};
pub use domain::{DomainConfig, DomainType, parse, render};
pub use features::Features;
pub use graphics::{Graphics, GraphicsListen, InputDevice};
pub use interface::{Interface, InterfaceSource, nic_alias};
pub use lifecycle::{Lifecycle, LifecycleAction};
pub use metadata::DomainMetadata;
pub use os::{Firmware, Os, machine_is};
pub use read::XmlError;
pub use rng::Rng;
pub use serial::Serial;
pub use sysinfo::Sysinfo;
pub use tpm::{Tpm, TpmModel};
pub use video::{Video, VideoModel};
pub use watchdog::{Watchdog, WatchdogModel};
