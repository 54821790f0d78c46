//! The house stands as ARCHITECTURE.md draws it: the arrow table is compared with what cargo
//! knows, and every dependency has its line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new("../..")
}

fn architecture() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap()
}

/// Each workspace crate and its direct dependencies (those of tests left out).
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let used = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"].is_null()).map(name).collect()
    };
    packages.iter().map(|package| (name(package), used(package))).collect()
}

/// The rows of the table under `heading`: the first cell and the last.
fn table(heading: &str) -> Vec<(String, String)> {
    let text = architecture();
    let section = text
        .split(&format!("\n## {heading}\n"))
        .nth(1)
        .unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), cells[cells.len() - 1].to_owned())
    })
    .collect()
}

#[test]
fn crates_use_only_what_the_arrows_name() {
    let drawn: BTreeMap<String, BTreeSet<String>> = table("The map")
        .into_iter()
        .map(|(name, arrows)| {
            let names = arrows.split(',').map(|name| name.trim().trim_matches('`').to_owned());
            (name, names.filter(|name| !name.is_empty() && name != "–").collect())
        })
        .collect();
    let all = dependencies();
    let built: BTreeMap<String, BTreeSet<String>> = all
        .iter()
        .map(|(name, used)| {
            (name.clone(), used.iter().filter(|used| all.contains_key(*used)).cloned().collect())
        })
        .collect();
    assert_eq!(drawn, built, "ARCHITECTURE.md draws the left, cargo knows the right");
}

#[test]
fn every_dependency_has_its_line() {
    let lines: BTreeSet<String> = table("Dependencies").into_iter().map(|(name, _)| name).collect();
    let all = dependencies();
    let outside = all.values().flatten().filter(|used| !all.contains_key(*used));
    let used: BTreeSet<String> = outside.cloned().collect();
    assert_eq!(lines, used, "ARCHITECTURE.md lists the left, the crates use the right");
}
