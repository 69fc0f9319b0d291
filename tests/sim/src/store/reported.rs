//! Kinds that daemons report about.

use std::sync::Arc;

use controller_plan::{Key, World};
use vireo_crds::v1alpha1::{Disk, Host, VirtualMachine, VirtualMachineAction};

use super::Object;

/// Kinds that daemons report about.
pub trait Reported: Sized {
    /// The stored object.
    fn stored<'a>(world: &'a World, key: &Key) -> Option<&'a Arc<Self>>;
    /// As an object of any kind.
    fn wrap(object: Self) -> Object;
    /// And back.
    fn unwrap(object: Object) -> Option<Arc<Self>>;
    /// Its conditions.
    fn conditions(&mut self) -> &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>;
}

macro_rules! reported {
    ($type:ident, $variant:ident, $get:expr) => {
        impl Reported for $type {
            fn stored<'a>(world: &'a World, key: &Key) -> Option<&'a Arc<Self>> {
                let get: fn(&'a World, &Key) -> Option<&'a Arc<Self>> = $get;
                get(world, key)
            }

            fn wrap(object: Self) -> Object {
                Object::$variant(Arc::new(object))
            }

            fn unwrap(object: Object) -> Option<Arc<Self>> {
                match object {
                    Object::$variant(object) => Some(object),
                    _ => None,
                }
            }

            fn conditions(&mut self) -> &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
                &mut self.status.get_or_insert_default().conditions
            }
        }
    };
}

reported!(VirtualMachine, Vm, |world, key| world.vm(key));
reported!(Disk, Disk, |world, key| world.disk(key));
reported!(VirtualMachineAction, Act, |world, key| world.act(key));
reported!(Host, Host, |world, key| world.host(&key.name));
