//! Counts by reason why no host fits: `0 of 3 hosts fit: host1, host3 lack 4Gi of memory (1.2Gi and 0.4Gi free),
//! host2 is not schedulable`.

use std::collections::BTreeMap;

use super::lack::Lack;

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
            groups.entry(lack.group()).or_default().push((host, lack));
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|hosts| std::cmp::Reverse(hosts.len()));
        let texts: Vec<_> = groups.iter().map(|hosts| phrase(hosts)).collect();
        let plural = if total == 1 { "host fits" } else { "hosts fit" };
        Self { message: format!("0 of {total} {plural}: {}", texts.join(", ")) }
    }
}

fn phrase(hosts: &[(&str, &Lack)]) -> String {
    let Some((_, lack)) = hosts.first() else { return String::new() };
    format!("{} {}", names(hosts), lack.phrase(hosts.len() > 1, &frees(hosts)))
}

fn names(hosts: &[(&str, &Lack)]) -> String {
    let shown: Vec<_> = hosts.iter().take(NAMES_SHOWN).map(|(name, _)| *name).collect();
    match hosts.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn frees(hosts: &[(&str, &Lack)]) -> String {
    let each: Vec<_> = hosts.iter().take(NAMES_SHOWN).map(|(_, lack)| lack.differing()).collect();
    match each.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, before)) => format!("{} and {last}", before.join(", ")),
        None => String::new(),
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
