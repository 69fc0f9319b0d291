//! Counts by reason why no host fits: `0 of 3 hosts fit: host1, host3 lack 4Gi of memory (1.2Gi and 0.4Gi free),
//! host2 is not schedulable`.

use std::collections::BTreeMap;

use vireo_crds::units::human_bytes;

use super::filters::Lack;

const NAMES_SHOWN: usize = 5;

/// Why no host fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoHostFits {
    /// In words.
    pub message: String,
}

impl NoHostFits {
    /// Of these refusals.
    pub fn of(cluster: &str, total: usize, refused: &[(&str, Lack)]) -> Self {
        if total == 0 {
            return Self { message: format!("HostCluster {cluster} has no hosts; join one") };
        }
        let mut groups: BTreeMap<Lack, Vec<(&str, &Lack)>> = BTreeMap::new();
        for (host, lack) in refused {
            groups.entry(group(lack)).or_default().push((host, lack));
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|hosts| std::cmp::Reverse(hosts.len()));
        let texts: Vec<_> = groups.iter().map(|hosts| phrase(hosts)).collect();
        let plural = if total == 1 { "host fits" } else { "hosts fit" };
        Self { message: format!("0 of {total} {plural}: {}", texts.join(", ")) }
    }
}

/// The reason without what differs from host to host.
fn group(lack: &Lack) -> Lack {
    match lack {
        Lack::Memory { need, .. } => Lack::Memory { need: *need, free: 0 },
        Lack::Cpus { need, .. } => Lack::Cpus { need: *need, free: 0 },
        other => other.clone(),
    }
}

fn phrase(hosts: &[(&str, &Lack)]) -> String {
    let Some((_, lack)) = hosts.first() else { return String::new() };
    let many = hosts.len() > 1;
    let verb = |one: &'static str, more: &'static str| if many { more } else { one };
    let (is, has, lacks, does) =
        (verb("is", "are"), verb("has", "have"), verb("lacks", "lack"), verb("does", "do"));
    let because = |why: &str| if why.is_empty() { String::new() } else { format!(" ({why})") };
    let rest = match lack {
        Lack::Leaving => format!("{is} being deleted"),
        Lack::NotNamed(named) => format!("{is} not {named}, which scheduling.hostName asks for"),
        Lack::NotSelected => format!("{lacks} the labels of scheduling.hostSelector"),
        Lack::NotJoined => format!("{has} not joined"),
        Lack::Silent => format!("{is} silent"),
        Lack::NotHeardYet => format!("{has} not been heard of yet"),
        Lack::Duplicate => format!("{is} claimed by two machines"),
        Lack::ConfirmedOver => {
            format!("{has} been confirmed as stopped; restart the daemon's machine or remove the annotation")
        }
        Lack::Unschedulable => format!("{is} not schedulable"),
        Lack::Hypervisor(why) => format!("{has} no working hypervisor{}", because(why)),
        Lack::Architecture(wanted) => format!("{is} not {wanted}"),
        Lack::Feature(feature) => format!("{lacks} {feature}"),
        Lack::CpuModel(model) => format!("{lacks} CPU model {model}"),
        Lack::DiskElsewhere { disk, host } => format!("{does} not have disk {disk}, which lies on {host}"),
        Lack::Domain { name, why } => format!("{does} not have storage domain {name}{}", because(why)),
        Lack::Network { name, why } => format!("{does} not have network {name}{}", because(why)),
        Lack::Memory { need, .. } => {
            format!("{lacks} {} of memory ({} free)", human_bytes(positive(*need)), frees(hosts))
        }
        Lack::Cpus { need, .. } => format!("{lacks} {need} vCPUs ({} free)", frees(hosts)),
    };
    format!("{} {rest}", names(hosts))
}

fn names(hosts: &[(&str, &Lack)]) -> String {
    let shown: Vec<_> = hosts.iter().take(NAMES_SHOWN).map(|(name, _)| *name).collect();
    match hosts.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn frees(hosts: &[(&str, &Lack)]) -> String {
    let each = hosts.iter().take(NAMES_SHOWN).map(|(_, lack)| match lack {
        Lack::Memory { need, free } => in_unit_of(positive(*free), positive(*need)),
        Lack::Cpus { free, .. } => free.to_string(),
        _ => String::new(),
    });
    let each: Vec<_> = each.collect();
    match each.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, before)) => format!("{} and {last}", before.join(", ")),
        None => String::new(),
    }
}

fn positive(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

/// Bytes with one decimal in the unit in which `like` is shown, so that the two can be compared at a glance.
fn in_unit_of(bytes: u64, like: u64) -> String {
    let units = [("Ti", 1u64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let Some((suffix, unit)) = units.into_iter().find(|(_, unit)| like >= *unit) else {
        return bytes.to_string();
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    if tenths.is_multiple_of(10) {
        format!("{}{suffix}", tenths / 10)
    } else {
        format!("{}.{}{suffix}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let gi = 1i64 << 30;
        let refused = [
            ("host1", Lack::Memory { need: 4 * gi, free: gi * 12 / 10 + 1 }),
            ("host2", Lack::Unschedulable),
            ("host3", Lack::Memory { need: 4 * gi, free: gi * 4 / 10 + 1 }),
        ];
        let expected = "0 of 3 hosts fit: host1, host3 lack 4Gi of memory (1.2Gi and 0.4Gi free), host2 is not schedulable";
        assert_eq!(NoHostFits::of("default", 3, &refused).message, expected);
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<_> = (1..=200).map(|i| format!("host{i}")).collect();
        let refused: Vec<_> = names.iter().map(|n| (n.as_str(), Lack::Silent)).collect();
        let message = NoHostFits::of("default", 200, &refused).message;
        assert_eq!(message, "0 of 200 hosts fit: host1, host2, host3, host4, host5 and 195 more are silent");
    }
}
