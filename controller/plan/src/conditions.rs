//! Decides whether stored conditions already say what is wanted, and which of them the controller has to go on
//! applying: with server-side apply a condition left out of the next apply is deleted, unless somebody else has
//! taken it over.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    meta, reasons,
};

/// Reasons that only the controller gives to `Ready`, `Reconciling` and `Stalled`: by these its conditions are
/// known where the API server's own record of ownership is missing.
const OURS: &[&str] = &[
    reasons::PLACED,
    reasons::HOST_SILENT,
    reasons::REFUSED,
    reasons::MAC_CLASH,
    reasons::DISK_IN_USE,
    reasons::DISK_NAME_TAKEN,
    reasons::DISK_DELETING,
    reasons::DISK_NOT_FOUND,
    reasons::NETWORK_NOT_FOUND,
    reasons::DOMAIN_NOT_FOUND,
    reasons::CLUSTER_NOT_FOUND,
    reasons::NO_HOST_FITS,
    reasons::ATTESTATION_PENDING,
    reasons::WAITING_FOR_EVIDENCE,
    reasons::WAITING_FOR_HOST,
    reasons::CLAIM_CONFLICT,
    reasons::DOUBLE_RUN,
    reasons::CONTRADICTORY_RULES,
];

/// Whether the controller still owns this condition of the object. Its type and what else both say alike stays on the
/// controller's list when another takes it over by force; the reason does not.
pub(crate) fn is_ours(meta: &ObjectMeta, stored: &Condition) -> bool {
    match meta.managed_fields.as_deref() {
        None | Some([]) => OURS.contains(&stored.reason.as_str()),
        Some(entries) => {
            let key = format!("k:{{\"type\":\"{}\"}}", stored.type_);
            entries
                .iter()
                .filter(|e| {
                    e.manager.as_deref() == Some(meta::CONTROLLER_MANAGER)
                        && e.subresource.as_deref() == Some("status")
                })
                .filter_map(|e| e.fields_v1.as_ref())
                .any(|fields| {
                    let condition = fields.0.pointer("/f:status/f:conditions").and_then(|c| c.get(&key));
                    condition.is_some_and(|owned| owned.get("f:reason").is_some())
                })
        }
    }
}

/// The stored `Ready`, if the controller wrote it and nobody has taken it over yet.
pub(crate) fn carried_ready(meta: &ObjectMeta, stored: &[Condition]) -> Option<ConditionValue> {
    let ready = condition::get(stored, kind::READY).filter(|c| is_ours(meta, c))?;
    Some(value(ready))
}

/// A stored condition without its time.
pub(crate) fn value(stored: &Condition) -> ConditionValue {
    ConditionValue {
        type_: stored.type_.clone(),
        status: stored.status.clone(),
        reason: stored.reason.clone(),
        message: stored.message.clone(),
    }
}

/// Whether applying `wanted` would change what is stored.
pub(crate) fn differ(meta: &ObjectMeta, stored: &[Condition], wanted: &[ConditionValue]) -> bool {
    let changed = |wanted: &ConditionValue| {
        condition::get(stored, &wanted.type_)
            .is_none_or(|stored| value(stored) != *wanted || stored.observed_generation != meta.generation)
    };
    let dropped = |stored: &Condition| {
        [kind::RECONCILING, kind::STALLED].contains(&stored.type_.as_str())
            && !wanted.iter().any(|w| w.type_ == stored.type_)
            && is_ours(meta, stored)
    };
    wanted.iter().any(changed) || stored.iter().any(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(manager: &str) -> ObjectMeta {
        serde_json::from_value(json!({
            "generation": 1,
            "managedFields": [{
                "manager": manager, "operation": "Apply", "subresource": "status",
                "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {"f:reason": {}}}}},
            }],
        }))
        .unwrap()
    }

    fn ready(reason: &str) -> Condition {
        ConditionValue::no(kind::READY, reason, "").at(&[], 1, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_record_of_ownership_decides_whose_a_condition_is() {
        assert!(is_ours(&object(meta::CONTROLLER_MANAGER), &ready(reasons::STARTING)));
        assert!(!is_ours(&object(meta::NODE_MANAGER), &ready(reasons::HOST_SILENT)));
    }

    #[test]
    fn without_a_record_the_reason_decides() {
        assert!(is_ours(&ObjectMeta::default(), &ready(reasons::HOST_SILENT)));
        assert!(!is_ours(&ObjectMeta::default(), &ready(reasons::STARTING)));
    }
}
