//! Detection on synthetic hosts stays within the bounds of `tests/quality/run.py`.

mod support;

use std::path::Path;
use std::process::Command;
use support::mlflow::python;

#[test]
fn scenarios_are_within_their_bounds() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quality/run.py");
    let output = Command::new(python())
        .arg(script)
        .args(["--part", "small", "--promforest", env!("CARGO_BIN_EXE_promforest")])
        .output()
        .expect("Python runs");
    let (table, reasons) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}\n{reasons}");
    println!("{table}");
}
