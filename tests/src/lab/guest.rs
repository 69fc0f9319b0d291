//! Runs scripts inside guests, through the guest agent.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lab;

impl Lab {
    /// Runs a shell script in a guest whose agent answers; its standard output.
    pub fn in_guest(&self, name: &str, script: &str) -> Result<String> {
        let host = self.host_of(name)?;
        let ask = |command: Value| -> Result<Value> {
            let answer = self.virsh(
                &host,
                ["qemu-agent-command", &format!("default.{name}"), &command.to_string(), "--timeout", "30"],
            )?;
            Ok(serde_json::from_str::<Value>(&answer)?["return"].take())
        };
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
        let started =
            self.until(&format!("the agent of {name} takes a script"), Duration::from_secs(120), || {
                ask(json!({"execute": "guest-exec", "arguments": arguments}))
            })?;
        let ended = self.until(&format!("the script ends in {name}"), Duration::from_secs(120), || {
            let state = ask(json!({"execute": "guest-exec-status", "arguments": {"pid": started["pid"]}}))?;
            ensure!(state["exited"] == true, "{state}");
            Ok(state)
        })?;
        let text = |stream: &str| ended[stream].as_str().map_or_else(|| Ok(String::new()), decode);
        let (output, errors) = (text("out-data")?, text("err-data")?);
        ensure!(
            ended["exitcode"] == 0,
            "{script:?} in {name} ended with {}: {output}{errors}",
            ended["exitcode"]
        );
        Ok(output)
    }
}

/// What the agent packed as base64.
fn decode(packed: &str) -> Result<String> {
    let mut tool =
        Command::new("base64").arg("--decode").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    tool.stdin.take().context("standard input")?.write_all(packed.as_bytes())?;
    let output = tool.wait_with_output()?;
    ensure!(output.status.success(), "base64: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
