//! Guests outlive the control plane: whatever of it stops, dies and comes back in whatever order, the same processes
//! run on; and a control plane with nothing to do writes nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use system_tests::lab::{Lab, alone, binary, condition, tiny_vm};

const HOSTS: [&str; 2] = ["host1", "host2"];
const PARTS: [&str; 4] = ["controller", "daemon", "libvirtd", "api"];
/// Orders of stopping and of starting, as places in `PARTS`; the verb that ends the parts.
const ORDERS: [([usize; 4], [usize; 4], &str); 6] = [
    ([0, 1, 2, 3], [3, 2, 1, 0], "stop"),
    ([3, 2, 1, 0], [0, 1, 2, 3], "kill"),
    ([2, 1, 3, 0], [1, 2, 0, 3], "stop"),
    ([1, 3, 0, 2], [3, 0, 1, 2], "kill"),
    ([2, 0, 3, 1], [1, 3, 2, 0], "stop"),
    ([3, 1, 2, 0], [2, 3, 0, 1], "kill"),
];

fn change(lab: &Lab, part: &str, verb: &str) -> Result<()> {
    if part == "daemon" || part == "libvirtd" {
        HOSTS.iter().try_for_each(|host| lab.lab([part, verb, host]).map(drop))
    } else {
        lab.lab([part, verb]).map(drop)
    }
}

/// Starts everything again, whatever a failed test left.
struct Mend<'a>(&'a Lab);

impl Drop for Mend<'_> {
    fn drop(&mut self) {
        for part in ["libvirtd", "api", "controller", "daemon"] {
            if let Err(error) = change(self.0, part, "start") {
                eprintln!("{part} did not start again: {error:#}");
            }
        }
    }
}

fn name(host: &str) -> String {
    format!("outlive-{host}")
}

/// The QEMU process of a host's guest, without asking the API.
fn pid(lab: &Lab, host: &str) -> Result<String> {
    let pids = lab.exec(host, ["pgrep", "-f", &format!("guest=default.{},", name(host))])?;
    let pid = pids.trim();
    ensure!(!pid.is_empty() && !pid.contains('\n'), "QEMU processes on {host}: {pid:?}");
    Ok(pid.to_owned())
}

fn pids(lab: &Lab) -> Result<Vec<String>> {
    HOSTS.iter().map(|host| pid(lab, host)).collect()
}

/// How often a host's guest has booted since its process started.
fn boots(lab: &Lab, host: &str) -> Result<usize> {
    let node = binary("vireo-node");
    let vm = format!("default/{}", name(host));
    let text = lab.exec(host, [node.as_os_str(), "console".as_ref(), vm.as_ref(), "--log".as_ref()])?;
    Ok(text.matches("login: boot ").count())
}

fn api_answers(lab: &Lab) -> Result<()> {
    lab.until("the API server answers", Duration::from_secs(60), || {
        lab.kubectl(["get", "--raw", "/readyz"]).map(drop)
    })
}

/// Waits until every host is Ready and every guest Running and Ready.
fn all_is_well(lab: &Lab) -> Result<()> {
    api_answers(lab)?;
    for host in HOSTS {
        lab.until(&format!("{host} is Ready"), Duration::from_secs(90), || {
            let object = lab.get("vhost", host)?;
            ensure!(
                condition(&object, "Ready").is_some_and(|c| c["status"] == "True"),
                "{}",
                object["status"]["conditions"]
            );
            Ok(())
        })?;
        lab.until_running(&name(host))?;
    }
    Ok(())
}

fn guests(lab: &Lab) -> Result<()> {
    for host in HOSTS {
        if lab.get("vvm", &name(host)).is_err() {
            lab.apply(&tiny_vm(&name(host), &format!("  scheduling: {{hostName: {host}}}\n")))?;
        }
    }
    HOSTS.iter().try_for_each(|host| lab.until_serial(&name(host), "login: boot").map(drop))
}

/// An edit reaches the running guest: everything works again.
fn an_edit_arrives(lab: &Lab, link: &str) -> Result<()> {
    for host in HOSTS {
        let spec = json!({"spec": {"interfaces": [{"name": "eth0", "network": "nat", "link": link}]}});
        lab.until("the edit is taken", Duration::from_secs(30), || {
            lab.kubectl(["patch", "vvm", &name(host), "--type=merge", "-p", &spec.to_string()]).map(drop)
        })?;
        let domain = format!("default.{}", name(host));
        lab.until(&format!("the link of {domain} is {link}"), Duration::from_secs(60), || {
            let down = lab.virsh(host, ["dumpxml", &domain])?.contains("<link state='down'/>");
            ensure!(down == (link == "Down"), "down: {down}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn lab_guests_outlive_every_part_in_six_orders() -> Result<()> {
    let lab = &*alone()?;
    guests(lab)?;
    all_is_well(lab)?;
    let running = pids(lab)?;
    let booted: Vec<usize> = HOSTS.iter().map(|host| boots(lab, host)).collect::<Result<_>>()?;
    let mend = Mend(lab);
    for (turn, (down, up, verb)) in ORDERS.into_iter().enumerate() {
        let began = Instant::now();
        for part in down {
            change(lab, PARTS[part], verb)?;
            ensure!(pids(lab)? == running, "{verb} {}: another process", PARTS[part]);
        }
        for part in up {
            change(lab, PARTS[part], "start")?;
            ensure!(pids(lab)? == running, "start {}: another process", PARTS[part]);
        }
        all_is_well(lab)?;
        an_edit_arrives(lab, if turn % 2 == 0 { "Down" } else { "Up" })?;
        ensure!(pids(lab)? == running, "order {turn}: another process");
        eprintln!("order {turn} ({verb}): {:.1} s", began.elapsed().as_secs_f64());
    }
    let now: Vec<usize> = HOSTS.iter().map(|host| boots(lab, host)).collect::<Result<_>>()?;
    ensure!(now == booted, "boots of the guests: {booted:?} before, {now:?} now");
    drop(mend);
    Ok(())
}

#[test]
fn lab_a_crash_without_the_api_is_repaired_and_told_afterwards() -> Result<()> {
    let lab = &*alone()?;
    guests(lab)?;
    all_is_well(lab)?;
    let (crashing, quiet) = (HOSTS[0], HOSTS[1]);
    let first = pid(lab, crashing)?;
    let other = pid(lab, quiet)?;
    let before = lab.get("vvm", &name(crashing))?["status"]["runtime"]["crashes"].as_i64().unwrap_or(0);
    let mend = Mend(lab);
    change(lab, "api", "kill")?;
    lab.exec(crashing, ["kill", "-9", &first])?;
    lab.until("the guest is started again without the API server", Duration::from_secs(90), || {
        let pid = pid(lab, crashing)?;
        ensure!(pid != first, "still {pid}");
        Ok(())
    })?;
    ensure!(pid(lab, quiet)? == other, "the other guest was touched");
    change(lab, "api", "start")?;
    api_answers(lab)?;
    lab.until("the crash is told", Duration::from_secs(90), || {
        let vm = lab.get("vvm", &name(crashing))?;
        ensure!(
            vm["status"]["runtime"]["crashes"].as_i64() == Some(before + 1),
            "{}",
            vm["status"]["runtime"]
        );
        Ok(())
    })?;
    all_is_well(lab)?;
    ensure!(pid(lab, quiet)? == other, "the other guest was touched");
    drop(mend);
    Ok(())
}

/// Requests that change something, by verb and resource, as the API server has counted them; Leases left out.
fn changes(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let text = lab.kubectl(["get", "--raw", "/metrics"])?;
    let mut counted = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let (labels, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        let label = |key: &str| {
            labels
                .split(&format!("{key}=\""))
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or_default()
        };
        let (verb, resource) = (label("verb"), label("resource"));
        if matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION")
            && resource != "leases"
        {
            *counted.entry(format!("{verb} {resource}/{}", label("subresource"))).or_insert(0.0) +=
                value.parse::<f64>()?;
        }
    }
    ensure!(!counted.is_empty(), "the API server counts nothing");
    Ok(counted)
}

#[test]
fn lab_nothing_is_written_while_nothing_happens() -> Result<()> {
    let lab = &*alone()?;
    guests(lab)?;
    all_is_well(lab)?;
    // What came before may still echo: the minute begins when it has been quiet for ten seconds.
    let (mut last, mut since) = (changes(lab)?, Instant::now());
    lab.until("it grows quiet", Duration::from_secs(90), || {
        let now = changes(lab)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() < Duration::from_secs(10) {
            bail!("{last:?}")
        }
        Ok(())
    })?;
    let began = Instant::now();
    let outcome = lab.until("a minute passes", Duration::from_secs(70), || {
        ensure!(began.elapsed() >= Duration::from_secs(60), "not yet");
        Ok(())
    });
    outcome?;
    let now = changes(lab)?;
    let written: Vec<_> = now.iter().filter(|(key, count)| last.get(*key) != Some(count)).collect();
    ensure!(
        written.is_empty(),
        "written within a minute in which nothing happened: {written:?}, before: {last:?}"
    );
    for host in HOSTS {
        let vm: Value = lab.get("vvm", &name(host))?;
        ensure!(vm["status"]["state"] == "Running", "{}", vm["status"]);
        lab.delete_vm(&name(host))?;
    }
    Ok(())
}
