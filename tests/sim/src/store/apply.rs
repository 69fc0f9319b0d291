//! The controller's writes: conditional, with the reference effect of their steps, under rule 3 of placements.

use controller_plan::{Key, Kind, Plan, Session, Step, effect};
use jiff::Timestamp;
use vireo_crds::v1alpha1::Placement;

use super::{Object, Owner, Refused, Store, get};

impl Store {
    /// Carries out a step of the controller's.
    pub fn apply(&mut self, step: &Step, now: Timestamp) -> Result<Option<Object>, Refused> {
        if let Step::CreateDisk { disk } = step {
            let document = serde_json::to_value(disk).unwrap_or_default();
            let created = self.create(Kind::Disk, document, now);
            return created.map(Some).ok_or(Refused::Stale("exists".into()));
        }
        let Some(object) = step.object() else { return Ok(None) };
        let key = Key::new(object.namespace.as_deref().unwrap_or_default(), &object.name);
        let kind = object.kind;
        let mut step = step.clone();
        if self.unconditional || self.without_uid {
            self.loosen(&mut step, kind, &key);
        }
        self.check(&step, &key)?;
        if let Step::SetPlacement { session, .. } = &step {
            self.world.set_session(Some(Session { nonce: session.clone(), ..Session::default() }));
        }
        let plan = Plan { steps: vec![step.clone()], ..Plan::default() };
        let done = effect::apply_plan(&mut self.world, &plan, now);
        self.world.set_session(None);
        done.map_err(|error| Refused::Stale(error.to_string()))?;
        if matches!(
            step,
            Step::EnsureHostAccess { .. } | Step::EnsureSecretAccess { .. } | Step::RemoveSecretAccess { .. }
        ) {
            return Ok(None);
        }
        self.own(&step, object.uid.clone());
        match get(&self.world, kind, &key) {
            Some(object) => Ok(Some(self.store(object))),
            None => {
                self.gone(kind, &key, &object.uid.clone(), now);
                Ok(None)
            }
        }
    }

    pub(super) fn own(&mut self, step: &Step, uid: String) {
        let Some(Ok(body)) = step.status_body(&[], Timestamp::UNIX_EPOCH) else { return };
        let applied: Vec<String> = body["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| Some(c["type"].as_str()?.to_owned()))
            .collect();
        self.owners
            .retain(|(of, type_), owner| *of != uid || *owner == Owner::Node || applied.contains(type_));
        for type_ in applied {
            self.owners.insert((uid.clone(), type_), Owner::Controller);
        }
    }

    /// Rule 3, as the type's CEL has it.
    pub(super) fn check(&self, step: &Step, key: &Key) -> Result<(), Refused> {
        let (Step::SetPlacement { vm, status, .. } | Step::SetVmStatus { vm, status }) = step else {
            return Ok(());
        };
        let stored = self.world.vm(key).filter(|o| o.metadata.uid.as_deref() == Some(&vm.uid));
        let Some(old) = stored.and_then(|o| o.status.as_ref()?.placement.as_ref()) else { return Ok(()) };
        if self.unconditional
            || stored.and_then(|o| o.metadata.resource_version.as_ref()) != Some(&vm.resource_version)
        {
            return Ok(());
        }
        rule3(old, status.placement.as_ref()).map_err(|rule| Refused::Invalid(rule.into()))
    }

    pub(super) fn loosen(&self, step: &mut Step, kind: Kind, key: &Key) {
        let Some(stored) = get(&self.world, kind, key) else { return };
        let meta = stored.meta().clone();
        let (unconditional, without_uid) = (self.unconditional, self.without_uid);
        set_reference(step, |object| {
            if without_uid {
                object.uid = meta.uid.clone().unwrap_or_default();
                object.resource_version = meta.resource_version.clone().unwrap_or_default();
            }
            if unconditional && meta.uid.as_deref() == Some(&object.uid) {
                object.resource_version = meta.resource_version.clone().unwrap_or_default();
            }
        });
    }
}

/// CEL rules of a placement, stated again.
pub fn rule3(old: &Placement, new: Option<&Placement>) -> Result<(), &'static str> {
    let Some(new) = new else { return Err("placement is unset") };
    if new.last_epoch < old.last_epoch {
        return Err("lastEpoch falls");
    }
    if new.epoch > new.last_epoch {
        return Err("lastEpoch does not cover the grant");
    }
    if new.id == old.id
        && (&new.host, &new.incarnation, new.epoch) != (&old.host, &old.incarnation, old.epoch)
    {
        return Err("a grant changes in place");
    }
    if new.id != old.id && new.epoch <= old.last_epoch && old.target.as_ref() != Some(&new.grant()) {
        return Err("a new grant takes an old number");
    }
    Ok(())
}

/// Changes the reference to the object a step writes.
pub fn set_reference(step: &mut Step, change: impl FnOnce(&mut controller_plan::ObjectRef)) {
    match step {
        Step::EnsureFinalizer { object } | Step::RemoveFinalizer { object, .. } => change(object),
        Step::SetPlacement { vm, .. }
        | Step::SetVmStatus { vm, .. }
        | Step::EnsureSecretAccess { vm, .. }
        | Step::RemoveSecretAccess { vm } => change(vm),
        Step::SetDiskStatus { disk, .. } => change(disk),
        Step::SetActStatus { act, .. } | Step::DeleteAct { act } => change(act),
        Step::SetHostStatus { host, .. } | Step::EnsureHostAccess { host } => change(host),
        Step::SetClusterStatus { cluster, .. } => change(cluster),
        Step::SetNetworkStatus { network, .. } => change(network),
        Step::SetDomainStatus { domain, .. } => change(domain),
        Step::SetGroupStatus { group, .. } => change(group),
        Step::CreateDisk { .. } => {}
    }
}
