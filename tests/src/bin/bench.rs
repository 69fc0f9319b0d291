//! Measures Vireo against bare libvirt: the same domain started by `virsh` and by Vireo on the same host, in
//! interleaved pairs. Prints ratios and differences with intervals, and fails where a limit is missed.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::Value;
use system_tests::{
    client::{client, config},
    lab::{BOOT_LIMIT, Lab},
};
use vireo_crds::v1alpha1::VirtualMachine;

const PAIRS: usize = 20;
/// Longest that the first serial line may take under Vireo, as a multiple of bare libvirt's.
const LINE_RATIO_LIMIT: f64 = 1.10;
/// Longest that Vireo may take over bare libvirt from the order to a running domain.
const RUNNING_DIFFERENCE_LIMIT: Duration = Duration::from_millis(60);
const DAEMON_RSS_LIMIT_KIB: u64 = 30 * 1024;
const GUESTS_FOR_RSS: usize = 10;

fn main() -> Result<()> {
    let lab = Lab::up("target/lab-bench", 1)?;
    let outcome = measure(&lab);
    lab.lab(["down"])?;
    outcome
}

fn measure(lab: &Lab) -> Result<()> {
    let host = Host::of(lab)?;
    let mut virsh = Virsh::connect(&host.uri)?;
    let bare_xml = bare_twin(lab)?;
    let mut pairs = Vec::new();
    for index in 0..PAIRS {
        // Whoever goes first alternates, so that a drift of the machine hits both alike.
        let (vireo, bare) = if index % 2 == 0 {
            let vireo = start_by_vireo(lab, &host)?;
            (vireo, start_bare(&mut virsh, &host, &bare_xml)?)
        } else {
            let bare = start_bare(&mut virsh, &host, &bare_xml)?;
            (start_by_vireo(lab, &host)?, bare)
        };
        println!(
            "pair {:>2}: first line {:>6.3} s by Vireo, {:>6.3} s bare; running {:>4} ms by Vireo, {:>4} ms bare",
            index + 1,
            vireo.line.as_secs_f64(),
            bare.line.as_secs_f64(),
            vireo.running.as_millis(),
            bare.running.as_millis()
        );
        pairs.push((vireo, bare));
    }
    let ratio = Interval::of(
        pairs.iter().map(|(vireo, bare)| vireo.line.as_secs_f64() / bare.line.as_secs_f64()).collect(),
    );
    let difference = Interval::of(
        pairs
            .iter()
            .map(|(vireo, bare)| (vireo.running.as_secs_f64() - bare.running.as_secs_f64()) * 1000.0)
            .collect(),
    );
    let rss = daemon_rss(lab, &host)?;
    println!(
        "\napply to first serial line, over start to first line: median {ratio:.3}, limit {LINE_RATIO_LIMIT:.2}"
    );
    println!(
        "apply to running, less bare: median {difference:.0} ms, limit {} ms",
        RUNNING_DIFFERENCE_LIMIT.as_millis()
    );
    println!(
        "node daemon with {GUESTS_FOR_RSS} guests: {:.1} MiB, limit {} MiB",
        rss as f64 / 1024.0,
        DAEMON_RSS_LIMIT_KIB / 1024
    );
    ensure!(ratio.median <= LINE_RATIO_LIMIT, "the first line comes too late");
    ensure!(difference.median <= RUNNING_DIFFERENCE_LIMIT.as_secs_f64() * 1000.0, "the domain runs too late");
    ensure!(rss <= DAEMON_RSS_LIMIT_KIB, "the node daemon takes too much memory");
    Ok(())
}

/// Where the lab's host is reached from outside its namespaces.
struct Host {
    uri: String,
    root: PathBuf,
    daemon: i64,
}

impl Host {
    fn of(lab: &Lab) -> Result<Self> {
        let status: Value = serde_json::from_str(&lab.lab(["status", "-o", "json"])?)?;
        let host = &status["hosts"][0];
        let pid = host["pid"].as_i64().context("host1 has no process")?;
        Ok(Self {
            uri: host["libvirtUri"].as_str().context("host1 has no libvirt")?.to_owned(),
            root: PathBuf::from(format!("/proc/{pid}/root")),
            daemon: host["daemon"]["pid"].as_i64().context("host1 has no daemon")?,
        })
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// From the order to a running domain, and to the guest's first serial line.
#[derive(Clone, Copy)]
struct Start {
    running: Duration,
    line: Duration,
}

fn vm(name: &str, strategy: &str) -> String {
    format!(
        "apiVersion: vireo.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}, namespace: default}}
spec:
  runStrategy: {strategy}
  memory: {{size: 128Mi}}
  gracePeriodSeconds: 0
  directKernelBoot: {{storageDomain: shared, kernel: vmlinuz, initrd: initrd.img, cmdline: \"console=ttyS0 quiet\"}}
  interfaces:
  - {{name: eth0, network: nat}}
"
    )
}

fn start_by_vireo(lab: &Lab, host: &Host) -> Result<Start> {
    let mut watch = Lines::of(lab.kubectl_command(["get", "vvm", "-w", "--output-watch-events", "-o", "jsonpath={.type} {.object.metadata.name} {.object.metadata.uid} {.object.status.runtime.power}{\"\\n\"}"]))?;
    let started = create(lab, &vm("bench", "Always"))?;
    let (running, uid) = loop {
        let line = watch.next()?;
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, "bench", uid, "On"] = words[..] {
            break (started.elapsed(), uid.to_owned());
        }
        ensure!(started.elapsed() < BOOT_LIMIT, "bench does not run");
    };
    watch.end();
    let line = first_line(&host.inside(&serial_log(&uid)), started)?;
    lab.delete_vm("bench")?;
    Ok(Start { running, line })
}

/// Where libvirt keeps what a guest of ours printed.
fn serial_log(uid: &str) -> String {
    format!("/var/lib/vireo/logs/{uid}.console.log")
}

/// Creates a VM by one request, without kubectl's own start-up in the measure; when the request was sent.
fn create(lab: &Lab, manifest: &str) -> Result<Instant> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let vm: VirtualMachine = serde_saphyr::from_str(manifest)?;
    runtime.block_on(async {
        let client = client(&config(&lab.kubeconfig()).await?)?;
        let api: Api<VirtualMachine> = Api::namespaced(client, "default");
        // Opens the connection, which a user's session has open too.
        api.list(&ListParams::default().limit(1)).await?;
        let started = Instant::now();
        api.create(&PostParams::default(), &vm).await?;
        Ok(started)
    })
}

fn start_bare(virsh: &mut Virsh, host: &Host, xml: &str) -> Result<Start> {
    let log = host.inside("/var/log/libvirt/bare.log");
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), xml)?;
    let started = Instant::now();
    let said = virsh.run(&format!("create {}", file.path().display()))?;
    let running = started.elapsed();
    ensure!(said.contains("created"), "virsh did not start the domain: {said}");
    let line = first_line(&log, started)?;
    virsh.run("destroy bare")?;
    Ok(Start { running, line })
}

fn first_line(log: &Path, started: Instant) -> Result<Duration> {
    loop {
        if fs::read(log).is_ok_and(|text| text.windows(6).any(|window| window == b"login:")) {
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < BOOT_LIMIT, "{} never had a login line", log.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The domain Vireo starts, without what makes it Vireo's: another name, uuid, address, log and no metadata.
fn bare_twin(lab: &Lab) -> Result<String> {
    lab.apply(&vm("bench", "Always"))?;
    let object = lab.until_running("bench")?;
    let uid = object["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let xml = lab.virsh("host1", ["dumpxml", "--inactive", "default.bench"])?;
    lab.delete_vm("bench")?;
    let without_metadata = cut(&xml, "<metadata>", "</metadata>")?;
    let mac = without_metadata
        .split("<mac address='")
        .nth(1)
        .and_then(|rest| rest.get(..17))
        .context("no MAC")?
        .to_owned();
    Ok(without_metadata
        .replace(&serial_log(&uid), "/var/log/libvirt/bare.log")
        .replace("default.bench", "bare")
        .replace(&mac, "02:76:00:be:be:be")
        .replace(&uid, "6d1c5a57-0a1e-4d35-9a7b-1f3a5b7c9d11"))
}

fn cut(text: &str, from: &str, to: &str) -> Result<String> {
    let start = text.find(from).with_context(|| format!("no {from}"))?;
    let end = text.find(to).with_context(|| format!("no {to}"))? + to.len();
    Ok(format!("{}{}", text.get(..start).unwrap_or_default(), text.get(end..).unwrap_or_default()))
}

fn daemon_rss(lab: &Lab, host: &Host) -> Result<u64> {
    // Ten vCPUs are more than four times those of a small machine, which is what a cluster allows at first.
    let overcommit = r#"{"spec":{"cpu":{"overcommit":10}}}"#;
    lab.kubectl(["patch", "hostcluster", "default", "--type=merge", "--patch", overcommit])?;
    for index in 0..GUESTS_FOR_RSS {
        lab.apply(&vm(&format!("rss-{index}"), "Always"))?;
    }
    for index in 0..GUESTS_FOR_RSS {
        lab.until_running(&format!("rss-{index}"))?;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", host.daemon))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(rss.split_whitespace().next().context("no VmRSS")?.parse()?)
}

/// One interactive virsh, so that its own start is not measured.
struct Virsh {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Virsh {
    fn connect(uri: &str) -> Result<Self> {
        let mut child =
            Command::new("virsh").args(["-c", uri]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no stdin")?;
        let output = child.stdout.take().context("no stdout")?;
        let mut virsh = Self { child, input, output };
        virsh.until_prompt()?;
        Ok(virsh)
    }

    /// Runs a command to its end; what it printed.
    fn run(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        self.input.flush()?;
        self.until_prompt().with_context(|| format!("virsh ended at: {command}"))
    }

    /// It asks for the next command once the last one is done, and ends no line with that.
    fn until_prompt(&mut self) -> Result<String> {
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while !said.ends_with(b"virsh # ") {
            let count = self.output.read(&mut chunk)?;
            ensure!(count > 0, "it said: {}", String::from_utf8_lossy(&said));
            said.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Virsh {
    fn drop(&mut self) {
        // Ends by itself when its input closes; nothing to do if it has.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of a command that goes on.
struct Lines {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Lines {
    fn of(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, output })
    }

    fn next(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the watch ended");
        Ok(line.trim_end().to_owned())
    }

    fn end(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A median with the 95 % interval that order statistics give.
struct Interval {
    median: f64,
    low: f64,
    high: f64,
}

impl Interval {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let at = |index: usize| values.get(index.min(count.saturating_sub(1))).copied().unwrap_or(f64::NAN);
        // Ranks n/2 -+ 0.98 sqrt(n) bound the median with 95 % confidence, whatever the distribution.
        let reach = 0.98 * (count as f64).sqrt();
        let rank = |offset: f64| ((count as f64 / 2.0) + offset).round().max(0.0) as usize;
        Self {
            median: f64::midpoint(at((count.saturating_sub(1)) / 2), at(count / 2)),
            low: at(rank(-reach).saturating_sub(1)),
            high: at(rank(reach)),
        }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(3);
        write!(f, "{:.digits$} [{:.digits$} to {:.digits$}] n{PAIRS}", self.median, self.low, self.high)
    }
}
