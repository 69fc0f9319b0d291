//! Decides whether a directory may be used as a storage domain on this host: only if its marker says that it is the
//! one meant. An unmounted path looks empty, and two installations may see the same export.

use serde::{Deserialize, Serialize};
use vireo_crds::{units::human_bytes, v1alpha1::Marker};

/// What the domain should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainIntent {
    /// Name of the StorageDomain.
    pub name: String,
    /// Directory on the host.
    pub path: String,
    /// What the marker must say; nothing until the controller has decided it.
    #[serde(default)]
    pub marker: Option<Marker>,
    /// This host may write the marker where there is none.
    #[serde(default)]
    pub may_initialize: bool,
    /// Another host is to write the marker of this shared domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialized_by: Option<String>,
    /// Below this share of free space the domain says so.
    #[serde(default)]
    pub warn_free_percent: i32,
}

/// What was found at the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DirectoryFact {
    /// Nothing there.
    Missing,
    /// Something that is no directory.
    NotADirectory,
    /// It cannot be read.
    Unreadable(String),
    /// It did not answer in time, as a network file system whose server is gone.
    Silent(u64),
    /// A directory without a marker.
    Unmarked,
    /// A marker that cannot be understood.
    BadMarker(String),
    /// A directory with a marker.
    Marked {
        /// What it says.
        marker: Marker,
        /// Size of the file system, in bytes.
        capacity: u64,
        /// Free space, in bytes.
        available: u64,
    },
}

/// What to do about a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DomainPlan {
    /// Write the marker, then look again.
    WriteMarker(Marker),
    /// Nothing: volumes can be used. The message, if any, warns.
    Ready {
        /// A warning.
        message: Option<String>,
    },
    /// Nothing: not usable, and why.
    NotReady {
        /// Whether the right marker was found.
        marked: bool,
        /// Why.
        message: String,
    },
}

/// Judges one domain on this host.
pub fn plan_domain(intent: &DomainIntent, fact: &DirectoryFact) -> DomainPlan {
    let path = &intent.path;
    let not_ready = |message: String| DomainPlan::NotReady { marked: false, message };
    let Some(wanted) = &intent.marker else {
        return not_ready("waiting for the controller to decide the marker of this domain".into());
    };
    match fact {
        DirectoryFact::Missing => not_ready(format!("{path} does not exist: make or mount it")),
        DirectoryFact::NotADirectory => not_ready(format!("{path} is not a directory")),
        DirectoryFact::Unreadable(why) => not_ready(format!("{path} cannot be read: {why}")),
        DirectoryFact::Silent(seconds) => {
            not_ready(format!("{path} has not answered for {seconds} s: check the server it is mounted from"))
        }
        DirectoryFact::BadMarker(why) => not_ready(format!(
            "{path}/.vireo-domain.json cannot be understood ({why}); nothing is touched until it is put right"
        )),
        DirectoryFact::Unmarked if intent.may_initialize => DomainPlan::WriteMarker(wanted.clone()),
        DirectoryFact::Unmarked => not_ready(match &intent.initialized_by {
            Some(host) => format!("{path} has no marker yet: waiting for {host} to write it"),
            None => format!(
                "{path} has no marker .vireo-domain.json: it looks unmounted; mount the file system the domain lies on"
            ),
        }),
        DirectoryFact::Marked { marker, .. } if marker.installation_id != wanted.installation_id => {
            not_ready(format!(
                "{path} belongs to another installation ({}), this one is {}; use another directory",
                marker.installation_id, wanted.installation_id
            ))
        }
        DirectoryFact::Marked { marker, .. } if marker.domain_uid != wanted.domain_uid => not_ready(format!(
            "{path} belongs to another StorageDomain (uid {}), this one is {}; use another directory, or remove \
             .vireo-domain.json if that StorageDomain is gone for good",
            marker.domain_uid, wanted.domain_uid
        )),
        DirectoryFact::Marked { capacity, available, .. } => {
            let percent = u128::from(*available) * 100 / u128::from((*capacity).max(1));
            let low = percent < u128::from(intent.warn_free_percent.max(0).unsigned_abs());
            DomainPlan::Ready {
                message: low.then(|| {
                    format!(
                        "only {} of {} are free on {path}",
                        human_bytes(*available),
                        human_bytes(*capacity)
                    )
                }),
            }
        }
    }
}

/// Whether a new figure of free space is worth a report: it moved by 5 % of the size, or across a threshold.
pub fn is_worth_reporting(reported: Option<i64>, available: u64, capacity: u64, thresholds: &[u64]) -> bool {
    let Some(reported) = reported.and_then(|bytes| u64::try_from(bytes).ok()) else { return true };
    reported.abs_diff(available) > capacity / 20
        || thresholds.iter().any(|limit| (reported < *limit) != (available < *limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(installation: &str, domain: &str) -> Marker {
        Marker { installation_id: installation.into(), domain_uid: domain.into() }
    }

    fn intent(may_initialize: bool) -> DomainIntent {
        DomainIntent {
            name: "shared".into(),
            path: "/srv/vireo".into(),
            marker: Some(marker("i", "d")),
            may_initialize,
            initialized_by: None,
            warn_free_percent: 10,
        }
    }

    fn refused(fact: &DirectoryFact) -> String {
        match plan_domain(&intent(false), fact) {
            DomainPlan::NotReady { marked: false, message } => message,
            other => panic!("{other:?}"),
        }
    }

    fn marked(installation: &str, domain: &str, available: u64) -> DirectoryFact {
        DirectoryFact::Marked { marker: marker(installation, domain), capacity: 100 << 30, available }
    }

    #[test]
    fn the_right_marker_makes_a_domain_ready() {
        assert_eq!(
            plan_domain(&intent(false), &marked("i", "d", 50 << 30)),
            DomainPlan::Ready { message: None }
        );
        let low = plan_domain(&intent(false), &marked("i", "d", 9 << 30));
        assert_eq!(
            low,
            DomainPlan::Ready { message: Some("only 9Gi of 100Gi are free on /srv/vireo".into()) }
        );
    }

    #[test]
    fn an_unmounted_directory_is_never_written_to() {
        assert!(refused(&DirectoryFact::Unmarked).contains("looks unmounted"));
        assert!(refused(&DirectoryFact::Missing).contains("does not exist"));
        assert!(refused(&DirectoryFact::Silent(10)).contains("has not answered"));
    }

    #[test]
    fn the_marker_is_written_only_where_the_controller_said_so() {
        assert_eq!(
            plan_domain(&intent(true), &DirectoryFact::Unmarked),
            DomainPlan::WriteMarker(marker("i", "d"))
        );
        let undecided = DomainIntent { marker: None, ..intent(true) };
        assert!(matches!(plan_domain(&undecided, &DirectoryFact::Unmarked), DomainPlan::NotReady { .. }));
        assert!(matches!(plan_domain(&intent(true), &DirectoryFact::Missing), DomainPlan::NotReady { .. }));
        let waiting = DomainIntent { initialized_by: Some("host2".into()), ..intent(false) };
        let plan = plan_domain(&waiting, &DirectoryFact::Unmarked);
        assert!(
            matches!(plan, DomainPlan::NotReady { message, .. } if message.contains("waiting for host2"))
        );
    }

    #[test]
    fn another_installations_marker_is_left_alone_even_where_we_may_initialize() {
        assert!(refused(&marked("other", "d", 0)).contains("another installation (other)"));
        assert!(refused(&marked("i", "other", 0)).contains("another StorageDomain (uid other)"));
        assert!(refused(&DirectoryFact::BadMarker("EOF".into())).contains("cannot be understood"));
        assert!(matches!(plan_domain(&intent(true), &marked("other", "d", 0)), DomainPlan::NotReady { .. }));
    }

    #[test]
    fn free_space_is_reported_when_it_moved() {
        assert!(is_worth_reporting(None, 1, 100, &[]));
        assert!(!is_worth_reporting(Some(50), 54, 100, &[]));
        assert!(is_worth_reporting(Some(50), 56, 100, &[]));
        assert!(is_worth_reporting(Some(50), 48, 100, &[49]));
    }
}
