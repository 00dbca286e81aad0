//! The architecture's dependency arrows: a room may use only what the table in ARCHITECTURE.md says.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Direct arrows; a room may also use whatever these may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("cli", &["danaus"]),
    ("danaus", &["bench", "train", "model", "text"]),
    ("bench", &["train"]),
    ("train", &["model"]),
    ("model", &["matrix", "text"]),
    ("matrix", &["kernel"]),
    ("kernel", &["tensor"]),
    ("tensor", &["runtime"]),
    ("runtime", &[]),
    ("text", &[]),
    ("testkit", &["tensor"]),
];

fn room(package: &str) -> &str {
    package.strip_prefix("danaus-").unwrap_or(package)
}

fn allowed(name: &str) -> BTreeSet<&'static str> {
    let direct = ARROWS.iter().find(|(from, _)| *from == name).map_or(&[][..], |(_, to)| *to);
    direct.iter().flat_map(|to| allowed(to).into_iter().chain([*to])).collect()
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

/// Workspace dependencies of a package that are part of what ships (development ones are free to use
/// `testkit`, and nothing else upwards).
fn uses(package: &Value, kind: Value) -> Vec<String> {
    let dependencies = package["dependencies"].as_array().expect("a list of dependencies");
    dependencies
        .iter()
        .filter(|dependency| dependency["kind"] == kind)
        .map(|dependency| dependency["name"].as_str().expect("a name"))
        .filter(|name| *name == "danaus" || name.starts_with("danaus-"))
        .map(|name| room(name).to_string())
        .collect()
}

#[test]
fn no_room_uses_what_it_must_not() {
    let mut broken = Vec::new();
    for package in packages() {
        let name = room(package["name"].as_str().expect("a name")).to_string();
        assert!(
            ARROWS.iter().any(|(from, _)| *from == name),
            "{name} is a new room: put it into the map in ARCHITECTURE.md and into this test"
        );
        let may = allowed(&name);
        broken.extend(
            uses(&package, Value::Null)
                .into_iter()
                .filter(|to| !may.contains(to.as_str()))
                .map(|to| format!("{name} -> {to}")),
        );
        broken.extend(
            uses(&package, Value::from("dev"))
                .into_iter()
                .filter(|to| to != "testkit" && !may.contains(to.as_str()))
                .map(|to| format!("{name} -> {to} (in tests)")),
        );
    }
    assert!(broken.is_empty(), "forbidden arrows: {broken:?}");
}

#[test]
fn testkit_is_never_shipped() {
    let shipped: BTreeMap<String, Vec<String>> = packages()
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("a name").to_string();
            (name, uses(package, Value::Null))
        })
        .filter(|(_, uses)| uses.iter().any(|to| to == "testkit"))
        .collect();
    assert!(shipped.is_empty(), "these ship the test helpers: {shipped:?}");
}
