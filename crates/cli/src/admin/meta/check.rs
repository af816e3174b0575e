//! `kiln admin meta check`.

use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::output;
use indicatif::HumanCount;
use kiln_config::MetaConfig;
use kiln_env::Env;
use kiln_meta_server::{Checked, Checker, Finding, Kind};
use kiln_types::{Code, Context, Error, InodeId};
use kiln_wire::CapabilityKey;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a check found, as JSON has it.
#[derive(Serialize)]
struct Report {
    inodes: u64,
    names: u64,
    pairs: u64,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inode: Option<InodeId>,
    why: String,
    repaired: bool,
    repairable: bool,
}

pub(super) async fn run(config: &MetaConfig, env: &Env, repair: bool, json: bool) -> Outcome {
    let checked = async {
        let key = kiln_config::read_server_key(&config.node.server_key)?;
        let engine = Engine::open(&config.node, &config.kv, env).await?;
        let checker = Checker::new(engine.kv(), env, CapabilityKey::derive(&key));
        let checked = match repair {
            true => checker.repair().await,
            false => checker.check().await,
        };
        drop(checker);
        engine.close().await?;
        checked.context("check")
    };
    let checked = checked.await.map_err(|error| Failure::from(error).unfinished())?;
    let (left, text) = (wrong(&checked), shown(&checked));
    match json {
        true => output::print_json(&report(checked))?,
        false => output::print(&text)?,
    }
    if left == 0 {
        return Ok(());
    }
    Err(Error::new(Code::Corrupt, format!("{left} found wrong with the metadata")).into())
}

/// How many things are still wrong.
fn wrong(checked: &Checked) -> usize {
    checked.findings.iter().filter(|found| !found.repaired).count()
}

/// Findings of one kind that are told one by one.
const TOLD_MAX: usize = 100;

fn shown(checked: &Checked) -> String {
    let mut text = String::new();
    if !checked.findings.is_empty() {
        let mut told: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut is_told = |found: &&Finding| {
            let told = told.entry(found.kind).or_default();
            *told += 1;
            *told <= TOLD_MAX
        };
        let rows: Vec<_> =
            checked.findings.iter().filter(|found| is_told(found)).map(row).collect();
        text += &output::table(&["WHAT", "PROBLEM", ""], &[], rows);
        for (kind, more) in told.iter().filter(|(_, count)| **count > TOLD_MAX) {
            text += &format!("and {} more of the kind '{kind:?}'\n", more - TOLD_MAX);
        }
    }
    let repairable = checked.findings.iter().any(|found| !found.repaired && found.repairable);
    let lost = checked.findings.iter().any(|found| !found.repaired && !found.repairable);
    if repairable {
        text +=
            "\n'kiln admin meta check --repair' sets right what it can; back the store up before\n";
    }
    if lost {
        text += "\nwhat cannot be read comes back only from a backup\n";
    }
    let Checked { inodes, names, pairs, .. } = checked;
    let verdict = if wrong(checked) == 0 { "no problems" } else { "looked at" };
    let [inodes, names, pairs] = [inodes, names, pairs].map(|count| HumanCount(*count));
    text + &format!("{verdict}: {inodes} inodes, {names} names, {pairs} pairs\n")
}

fn row(found: &Finding) -> Vec<String> {
    let path = path_of(found);
    let inode = found.inode.map(|inode| format!("inode {inode}"));
    let what = path.or(inode).unwrap_or_else(|| "-".into());
    let state = if found.repaired { "set right" } else { "" };
    vec![what, found.why.clone(), state.into()]
}

/// Names may hold what a terminal takes for commands.
fn path_of(found: &Finding) -> Option<String> {
    let path = found.path.as_deref()?;
    Some(String::from_utf8_lossy(path).replace(char::is_control, "?"))
}

fn report(checked: Checked) -> Report {
    let Checked { inodes, names, pairs, findings } = checked;
    let row = |found: Finding| Row {
        kind: format!("{:?}", found.kind).to_lowercase(),
        path: path_of(&found),
        inode: found.inode,
        why: found.why,
        repaired: found.repaired,
        repairable: found.repairable,
    };
    Report { inodes, names, pairs, findings: findings.into_iter().map(row).collect() }
}
