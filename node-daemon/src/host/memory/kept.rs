//! Keeps the guests of a host in memory in a file, as it is after each step, so that they outlive the process that
//! drives them. The file is no promise to anybody: it is for trying things out, and tests may edit it while no daemon runs.

use std::{collections::BTreeMap, fs, io, path::Path};

use node_plan::facts::TokenFact;
use serde::{Deserialize, Serialize};

use super::{Guest, State};

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    guests: BTreeMap<String, Guest>,
    tokens: BTreeMap<String, TokenFact>,
    foreign: Vec<String>,
    next_pid: u32,
    /// libvirt of this host cannot keep a TPM's state in a directory of our choice.
    without_tpm_source: bool,
}

/// What the file says; no file is a host without guests.
pub(super) fn read(file: &Path) -> io::Result<State> {
    let kept: Kept = match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
        Err(error) => return Err(error),
    };
    let Kept { guests, tokens, foreign, next_pid, without_tpm_source } = kept;
    Ok(State { guests, tokens, foreign, next_pid, without_tpm_source, ..State::default() })
}

/// Writes it down, if there is a file. Not synced: the guests are gone with the machine anyway.
pub(super) fn save(state: &State) {
    let Some(file) = &state.file else { return };
    let State { guests, tokens, foreign, next_pid, without_tpm_source, .. } = state;
    let kept = Kept {
        guests: guests.clone(),
        tokens: tokens.clone(),
        foreign: foreign.clone(),
        next_pid: *next_pid,
        without_tpm_source: *without_tpm_source,
    };
    let partial = file.with_extension("new");
    let written = serde_json::to_vec_pretty(&kept)
        .map_err(io::Error::from)
        .and_then(|text| fs::write(&partial, text))
        .and_then(|()| fs::rename(&partial, file));
    if let Err(error) = written {
        tracing::error!(%error, file = %file.display(), "the guests of the host in memory could not be kept");
    }
}
