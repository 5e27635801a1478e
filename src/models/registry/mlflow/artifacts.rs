//! The files of a run, which pass through the tracking server.

use super::{Error, Mlflow, RESPONSE_LIMIT, text_field};
use crate::http::percent_encode;
use crate::models::artifact::Files;
use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderValue;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most bytes of one artifact, and of all artifacts of a model.
const ARTIFACT_LIMIT: u64 = 512 << 20;
/// Most files of a model's folder.
const MAX_FILES: usize = 100;

impl Mlflow {
    /// The listing of a folder of the artifact store.
    async fn list_folder(&self, uri: &str) -> Result<Value, Error> {
        let path = percent_encode(proxied_path(uri)?);
        let address = format!("{}/api/2.0/mlflow-artifacts/artifacts?path={path}", self.base);
        self.call(Method::GET, &address, None).await
    }

    /// The files directly in a folder of the artifact store; none if there is no such folder.
    pub(super) async fn download_folder(&self, uri: &str) -> Result<Files, Error> {
        let path = proxied_path(uri)?;
        let response = self.list_folder(uri).await?;
        let mut files = Files::new();
        let mut remaining = ARTIFACT_LIMIT;
        for file in response["files"].as_array().into_iter().flatten() {
            let name = text_field(file, "path");
            if file["is_dir"].as_bool() == Some(true) || name.contains('/') {
                continue;
            }
            let oversized = |what: String, limit| Error::Oversized { uri: uri.into(), what, limit };
            if files.len() == MAX_FILES {
                return Err(oversized(format!("more than {MAX_FILES} files"), MAX_FILES as u64));
            }
            let address = format!(
                "{}/api/2.0/mlflow-artifacts/artifacts/{}/{}",
                self.base,
                encode_path(path),
                percent_encode(&name)
            );
            let limit = usize::try_from(remaining).unwrap_or(usize::MAX);
            let bytes = self.send(Method::GET, &address, None, limit).await?;
            remaining = remaining
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| oversized("more bytes".into(), ARTIFACT_LIMIT))?;
            files.insert(name, bytes.to_vec());
        }
        Ok(files)
    }

    /// Writes the files of a folder, and checks that the store has those directly in it in full: a version of a part would
    /// not load.
    pub(super) async fn upload_folder(&self, uri: &str, files: Files) -> Result<(), Error> {
        let mut sizes = BTreeMap::new();
        for (name, bytes) in files {
            let address = format!("{uri}/{name}");
            if !name.contains('/') {
                sizes.insert(name, bytes.len() as u64);
            }
            self.upload(&address, bytes).await?;
        }
        check_stored(uri, &self.list_folder(uri).await?, &sizes)
    }

    pub(super) async fn upload(&self, uri: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let address =
            format!("{}/api/2.0/mlflow-artifacts/artifacts/{}", self.base, encode_path(proxied_path(uri)?));
        let content = (HeaderValue::from_static("application/octet-stream"), Bytes::from(bytes));
        self.send(Method::PUT, &address, Some(content), RESPONSE_LIMIT).await.map(drop)
    }
}

/// Checks that the listing of a folder has these files in full. A store may lack the sizes.
fn check_stored(uri: &str, listing: &Value, sizes: &BTreeMap<String, u64>) -> Result<(), Error> {
    for (name, size) in sizes {
        let mut files = listing["files"].as_array().into_iter().flatten();
        let file = files.find(|file| text_field(file, "path") == *name);
        let stored = file.map(|file| file["file_size"].as_u64().unwrap_or(*size));
        if stored != Some(*size) {
            let (uri, stored) = (format!("{uri}/{name}"), stored.unwrap_or(0));
            return Err(Error::Truncated { uri, stored, size: *size });
        }
    }
    Ok(())
}

/// The path of an artifact behind the tracking server.
fn proxied_path(uri: &str) -> Result<&str, Error> {
    let path = uri.strip_prefix("mlflow-artifacts:").ok_or_else(|| Error::NotProxied(uri.into()))?;
    // With an authority: mlflow-artifacts://host:port/1/...
    let path = path.strip_prefix("//").map_or(path, |rest| rest.split_once('/').map_or("", |(_, path)| path));
    Ok(path.trim_start_matches('/'))
}

fn encode_path(path: &str) -> String {
    path.split('/').map(percent_encode).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn artifacts_go_through_the_server() {
        assert_eq!(
            proxied_path("mlflow-artifacts:/4/cae/artifacts/model").expect("proxied"),
            "4/cae/artifacts/model"
        );
        assert_eq!(proxied_path("mlflow-artifacts://host:5000/4/cae").expect("proxied"), "4/cae");
        let bucket = proxied_path("s3://bucket/4").expect_err("not proxied").to_string();
        assert!(bucket.starts_with("the files are at s3://bucket/4: the server must proxy them"), "{bucket}");
    }

    #[test]
    fn a_file_that_is_not_stored_in_full_is_found() {
        let sizes = BTreeMap::from([("MLmodel".to_string(), 20), ("forest.json".to_string(), 3000)]);
        let check = |files: Value| {
            check_stored("mlflow-artifacts:/4/model", &json!({ "files": files }), &sizes)
                .map_err(|error| error.to_string())
        };
        let file = |name: &str, size: u64| json!({"path": name, "is_dir": false, "file_size": size});
        assert_eq!(check(json!([file("MLmodel", 20), file("x", 1), file("forest.json", 3000)])), Ok(()));
        assert_eq!(
            check(json!([file("MLmodel", 20), {"path": "forest.json"}])),
            Ok(()),
            "sizes are not known"
        );
        for files in [json!([file("MLmodel", 20)]), json!([file("MLmodel", 20), file("forest.json", 0)])] {
            let expected = "mlflow-artifacts:/4/model/forest.json has 0 bytes after the upload of 3000";
            assert_eq!(check(files), Err(expected.into()));
        }
    }

    #[test]
    fn reserved_characters_are_percent_encoded() {
        assert_eq!(percent_encode("name LIKE 'a_%'"), "name%20LIKE%20%27a_%25%27");
        assert_eq!(encode_path("4/a b/ü"), "4/a%20b/%C3%BC");
    }
}
