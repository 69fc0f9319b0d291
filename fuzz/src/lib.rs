//! What the fuzz targets do with their bytes: one module per family of input, named as its target.
//!
//! Each reads what users, guests, images, peers or the disk may hold, and checks what must be true of whatever was
//! accepted. A panic, an overflow or a broken promise is a finding; it becomes a test where the reader lives.

pub mod addresses;
pub mod capabilities_xml;
pub mod domain_xml;
pub mod fleet_plans;
pub mod host_plans;
pub mod images;
pub mod json;
pub mod ledger;
pub mod markers;
pub mod network_xml;
pub mod paths;
pub mod quantities;
pub mod seed;
pub mod told;
pub mod urls;
