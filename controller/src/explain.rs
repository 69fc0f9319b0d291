//! Explains where a VM is: reads what the API server has, once, and prints what the planner says of every host.

use controller_plan::{Freshness, HostLiveness, Key, World, explain};
use kube::{
    Api, Client, Config,
    api::{DynamicObject, ListParams},
};
use vireo_crds::{
    condition::{self, kind},
    reasons,
};

use crate::{
    error::Error,
    kinds::{self, KINDS},
};

/// Prints why the VM `NAMESPACE/NAME` is where it is, and what every other host lacks.
pub async fn run(config: Config, vm: &str) -> Result<(), Error> {
    let (namespace, name) = vm.split_once('/').unwrap_or(("default", vm));
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| Error::Connect { server, source: Box::new(e) })?;
    let world = read(client).await?;
    let found = world.vm(&Key::new(namespace, name));
    let found =
        found.ok_or_else(|| Error::Config(format!("VirtualMachine {namespace}/{name} does not exist")))?;
    print!("{}", explain(&world, found));
    Ok(())
}

async fn read(client: Client) -> Result<World, Error> {
    let mut world = World::default();
    for kind in KINDS {
        let api = Api::<DynamicObject>::all_with(client.clone(), &kinds::resource(kind));
        let listed = api.list(&ListParams::default()).await.map_err(Error::api(format!("list {kind}")))?;
        for object in listed {
            let name = object.metadata.name.clone().unwrap_or_default();
            if let Err(error) = kinds::put(&mut world, kind, object) {
                eprintln!("{kind} {name} cannot be decoded and is left out: {error}");
            }
        }
    }
    let signs: Vec<_> = world.hosts().map(|(name, host)| (name.clone(), liveness(host))).collect();
    for (name, liveness) in signs {
        world.set_liveness(&name, liveness);
    }
    Ok(world)
}

/// Signs of life as the running controller has written them: Leases tell nothing to who looks only once.
fn liveness(host: &vireo_crds::v1alpha1::Host) -> HostLiveness {
    let conditions = host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let reachable = condition::get(conditions, kind::REACHABLE);
    let freshness = match reachable.map(|c| c.status.as_str()) {
        Some("True") => Freshness::Fresh,
        Some("False") => Freshness::Silent,
        Some(_) | None => Freshness::NotYetKnown,
    };
    let duplicate = reachable.is_some_and(|c| c.reason == reasons::DUPLICATE_IDENTITY);
    HostLiveness { freshness, duplicate, ..HostLiveness::default() }
}
