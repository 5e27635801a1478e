//! The MLflow servers that other tests rely on: they store the data of clients, and keep it over a kill.

mod support;

use std::fs;
use std::sync::LazyLock;
use support::http;
use support::mlflow::{Mlflow, MlflowKind};

/// One server for all tests that leave it running.
static MLFLOW: LazyLock<Mlflow> = LazyLock::new(|| Mlflow::start(MlflowKind::V3));

/// A run with an artifact, and a version of a model with an alias on it; prints the artifact's URI without its scheme.
const REGISTER: &str = r#"
import sys
import mlflow

model, contents = sys.argv[1:]
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment(model))
client.log_text(run.info.run_id, contents, "model/forest.txt")
client.create_registered_model(model)
version = client.create_model_version(model, run.info.artifact_uri + "/model", run.info.run_id)
client.set_registered_model_alias(model, "champion", version.version)
client.set_terminated(run.info.run_id)
scheme, path = run.info.artifact_uri.split(":", 1)
assert scheme == "mlflow-artifacts", run.info.artifact_uri
print(path.strip("/"), end="")
"#;

/// Prints what the alias leads to.
const READ_BACK: &str = r#"
import sys
import mlflow

version = mlflow.MlflowClient().get_model_version_by_alias(sys.argv[1], "champion")
print(version.version, mlflow.artifacts.load_text(version.source + "/forest.txt"), end="")
"#;

#[test]
fn client_data_is_in_postgres_and_s3() {
    let path = MLFLOW.python(REGISTER, &["stores", "one tree"]);
    let object = MLFLOW.artifacts().join(path).join("model/forest.txt");
    assert_eq!(
        fs::read_to_string(&object).unwrap_or_else(|err| panic!("{}: {err}", object.display())),
        "one tree"
    );
    let select = r#"
import sys
import psycopg2

cursor = psycopg2.connect(sys.argv[1]).cursor()
cursor.execute("select alias, version from registered_model_aliases where name = 'stores'")
print(cursor.fetchall(), end="")
"#;
    assert_eq!(MLFLOW.python(select, &[&MLFLOW.database()]), "[('champion', 1)]");
    assert_eq!(MLFLOW.python(READ_BACK, &["stores"]), "1 one tree");
}

#[test]
fn a_version_2_server_keeps_its_data_over_a_kill() {
    let mut mlflow = Mlflow::start(MlflowKind::V2);
    assert!(http::get(&mlflow.address(), "/version").expect("the server answers").body.starts_with("2."));
    mlflow.python(REGISTER, &["kept", "two trees"]);
    mlflow.kill();
    http::get(&mlflow.address(), "/health").expect_err("it is gone");
    mlflow.restart();
    assert_eq!(mlflow.python(READ_BACK, &["kept"]), "1 two trees");
}

#[test]
fn a_server_with_accounts_rejects_anonymous_requests() {
    let mlflow = Mlflow::start(MlflowKind::V3WithAccounts);
    let search = "/api/2.0/mlflow/registered-models/search";
    assert_eq!(http::get(&mlflow.address(), search).expect("the server answers").status, 401);
    mlflow.python(REGISTER, &["guarded", "three trees"]);
    assert_eq!(mlflow.python(READ_BACK, &["guarded"]), "1 three trees");
}
