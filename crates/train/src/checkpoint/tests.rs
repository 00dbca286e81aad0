//! Checkpoints on failing disks, after kills, and of other versions.

use super::*;
use crate::toy::Toy;
use crate::trainer::{Start, Trainer};
use crate::{Every, TrainConfig};
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// Set in a child process: the folder to train in.
const CHILD: &str = "DANAUS_TEST_RUN";

fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        checkpoint: Every::Steps(2),
        validate: Every::End,
        divergence: None,
        keep: 2,
        ..TrainConfig::default()
    }
}

fn train(run: &Path, steps: u64) -> Result<u64> {
    let mut toy = Toy::new(1);
    let mut trainer = Trainer::new(&mut toy, config(steps), run, Start::ResumeOrNew)?;
    Ok(trainer.run(&mut (), &AtomicBool::new(false))?.step)
}

fn names(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_last_ones_are_kept_and_leftovers_removed() {
    let run = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(run.path().join("checkpoints/step-3.tmp")).unwrap();
    train(run.path(), 7).unwrap();
    assert_eq!(names(run.path()), ["latest", "step-6", "step-7"]);
    assert_eq!(std::fs::read_to_string(run.path().join("checkpoints/latest")).unwrap(), "step-7\n");
}

#[test]
fn without_pointer_the_newest_complete_folder_counts() {
    let run = tempfile::tempdir().unwrap();
    train(run.path(), 4).unwrap();
    let store = Store::new(run.path());
    // What a kill between writing the folder and the pointer, and a half copied folder, leave.
    std::fs::write(run.path().join("checkpoints/latest"), "step-99\n").unwrap();
    std::fs::create_dir(run.path().join("checkpoints/step-99")).unwrap();
    assert_eq!(store.latest().unwrap(), Some(store.path(4)));
    std::fs::remove_file(run.path().join("checkpoints/latest")).unwrap();
    assert_eq!(store.latest().unwrap(), Some(store.path(4)));
}

#[test]
fn other_versions_and_damage_are_refused() {
    let run = tempfile::tempdir().unwrap();
    train(run.path(), 2).unwrap();
    let folder = Store::new(run.path()).path(2);
    let path = folder.join(MANIFEST_NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = |changed: String| {
        std::fs::write(&path, changed).unwrap();
        manifest(&folder).unwrap_err().to_string()
    };
    let message = refused(text.replace("\"version\": 1", "\"version\": 7"));
    assert!(message.contains("version 7; this build (danaus "), "{message}");
    assert!(refused(text.replace("\"version\": 1", "\"versio\": 1")).contains("version"));
    assert!(refused(text[..text.len() / 2].to_string()).contains("not valid"));
    assert!(refused(text.replace("\"counters\"", "\"counter\"")).contains("counters"));
    std::fs::write(&path, &text).unwrap();
    assert!(manifest(&folder).is_ok());

    let weights = folder.join(SINGLE_NAME);
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 10]).unwrap();
    let message = train(run.path(), 4).unwrap_err().to_string();
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn every_number_comes_back_exactly() {
    let run = tempfile::tempdir().unwrap();
    let mut toy = Toy::new(1);
    let mut config = config(2);
    config.optimizer.set_lr(0.1 + 0.2);
    config.clip_norm = Some(1.0 / 3.0);
    let mut trainer = Trainer::new(&mut toy, config.clone(), run.path(), Start::New).unwrap();
    trainer.run(&mut (), &AtomicBool::new(false)).unwrap();
    assert_eq!(manifest(&Store::new(run.path()).path(2)).unwrap().config, config);
}

/// Not a test of its own: what the tests below run in another process.
#[test]
fn child() {
    let Ok(run) = std::env::var(CHILD) else { return };
    match train(Path::new(&run), 1_000_000) {
        Ok(step) => println!("done {step}"),
        Err(error) => println!("failed: {error}"),
    }
}

/// This test binary as a child process, behind a shell line.
fn child_process(run: &Path, before: &str) -> Command {
    let mut command = Command::new("sh");
    let line = format!("{before} exec \"$0\" --exact checkpoint::tests::child --nocapture");
    command.args(["-c", &line]).arg(std::env::current_exe().unwrap());
    command.env(CHILD, run).env("DANAUS_THREADS", "1").stdout(std::process::Stdio::piped());
    command
}

#[test]
#[cfg(unix)]
fn kill_at_any_moment_leaves_a_whole_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let store = Store::new(run.path());
    let mut before = 0;
    for moment in 0..20u64 {
        let mut child = child_process(run.path(), "").spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 + 13 * moment % 70));
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(folder) = store.latest().unwrap() else { continue };
        let manifest = manifest(&folder).unwrap();
        assert!(manifest.counters.step >= before, "a checkpoint got lost");
        before = manifest.counters.step;
        // It can be continued, and the continuation starts where it says.
        let mut toy = Toy::new(2);
        let mut optimizer =
            Optimizer::new(manifest.config.optimizer.clone(), toy.params()).unwrap();
        restore(&folder, &mut toy, &mut optimizer, &manifest.config).unwrap();
        assert_eq!(toy.cursor().unwrap()["position"], before);
        assert_eq!(optimizer.steps(), before);
    }
    assert!(before > 0, "no child got as far as a checkpoint");
}

/// A file-size limit stands for the full disk: writing fails in the middle of a file.
#[test]
#[cfg(unix)]
fn a_full_disk_stops_training_and_keeps_the_last_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    train(run.path(), 4).unwrap();
    // 20 KiB a file: less than the weights. The signal is ignored, so that writing reports an error.
    let output = child_process(run.path(), "trap '' XFSZ; ulimit -f 40;").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "failed: step 6: cannot write the checkpoint: ";
    assert!(text.contains(expected) && text.contains("the last good checkpoint is"), "{text}");
    assert!(text.contains("step-4"), "{text}");
    let store = Store::new(run.path());
    assert_eq!(store.latest().unwrap(), Some(store.path(4)));
    // With room again the run goes on.
    assert_eq!(train(run.path(), 6).unwrap(), 6);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join("checkpoints"), "a file").unwrap();
    let message = train(run.path(), 2).unwrap_err().to_string();
    assert!(message.contains("checkpoints"), "{message}");
}
