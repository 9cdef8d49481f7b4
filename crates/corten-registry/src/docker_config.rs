//! Docker's `config.json`: stored credentials and credential helpers
//! (docker-credential-helpers protocol: JSON on standard input and output).
//!
//! The file is rewritten atomically, 0600, and what we do not know in it stays.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::credential::Credential;
use crate::error::RegistryError;

/// The user name under which helpers keep an identity token.
const TOKEN_USER: &str = "<token>";

/// A loaded `config.json`.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    document: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct HelperSecret {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl DockerConfig {
    /// Loads the file of a configuration directory; a missing one is empty.
    ///
    /// # Errors
    /// The file cannot be read or is no JSON object.
    pub fn load(directory: &Path) -> Result<Self, RegistryError> {
        let path = directory.join("config.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(RegistryError::Config {
                    path,
                    reason: error.to_string(),
                });
            }
        };
        let document = if text.trim().is_empty() {
            Map::new()
        } else {
            serde_json::from_str(&text).map_err(|error| RegistryError::Config {
                path: path.clone(),
                reason: error.to_string(),
            })?
        };
        Ok(Self { path, document })
    }

    /// The helper that is responsible for a registry, if any.
    fn helper(&self, server: &str) -> Option<&str> {
        self.document
            .get("credHelpers")
            .and_then(|helpers| helpers.get(server))
            .or_else(|| self.document.get("credsStore"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The credentials of a registry.
    ///
    /// # Errors
    /// A helper fails, or the entry is damaged.
    pub fn get(&self, server: &str) -> Result<Option<Credential>, RegistryError> {
        if let Some(helper) = self.helper(server) {
            return helper_get(helper, server);
        }
        let Some(auths) = self.document.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        // Older entries are URLs where a bare host is asked for, and the other way round.
        let bare = |key: &str| crate::credential::domain_of(key);
        let entry = auths.get(server).or_else(|| {
            auths
                .iter()
                .find(|(key, _)| bare(key) == bare(server))
                .map(|(_, value)| value)
        });
        entry.map(|entry| self.parse(server, entry)).transpose()
    }

    /// The credentials of every registry there are any for, and why some could not be had.
    pub fn get_all(&self) -> (BTreeMap<String, Credential>, Vec<RegistryError>) {
        let mut found = BTreeMap::new();
        let mut failures = Vec::new();
        let mut servers: Vec<String> = Vec::new();
        for field in ["auths", "credHelpers"] {
            if let Some(map) = self.document.get(field).and_then(Value::as_object) {
                servers.extend(map.keys().cloned());
            }
        }
        if let Some(store) = self.document.get("credsStore").and_then(Value::as_str) {
            match helper_list(store) {
                Ok(listed) => servers.extend(listed),
                // The same helper would only fail again for each server.
                Err(error) => return (found, vec![error]),
            }
        }
        for server in servers {
            match self.get(&server) {
                Ok(Some(credential)) => drop(found.insert(server, credential)),
                Ok(None) => {}
                Err(error) => failures.push(error),
            }
        }
        (found, failures)
    }

    fn parse(&self, server: &str, entry: &Value) -> Result<Credential, RegistryError> {
        let mut credential: Credential = serde_json::from_value(entry.clone()).unwrap_or_default();
        let auth = std::mem::take(&mut credential.auth);
        if !auth.is_empty() {
            let damaged = || RegistryError::Config {
                path: self.path.clone(),
                reason: format!("the entry of {server} is damaged: log in again"),
            };
            let decoded = STANDARD.decode(auth.trim()).map_err(|_| damaged())?;
            let decoded = String::from_utf8(decoded).map_err(|_| damaged())?;
            let (user, password) = decoded.split_once(':').ok_or_else(damaged)?;
            credential.username = user.to_owned();
            credential.password = password.trim_end_matches('\0').to_owned();
        }
        credential.server_address = server.to_owned();
        Ok(credential)
    }

    /// Stores credentials: with the helper where one is configured. Tells whether they were
    /// written unencrypted to the file.
    ///
    /// # Errors
    /// The helper or the file refuses.
    pub fn store(&mut self, server: &str, credential: &Credential) -> Result<bool, RegistryError> {
        if let Some(helper) = self.helper(server).map(str::to_owned) {
            let token = !credential.identity_token.is_empty();
            let secret = HelperSecret {
                server: server.to_owned(),
                username: if token {
                    TOKEN_USER.into()
                } else {
                    credential.username.clone()
                },
                secret: if token {
                    &credential.identity_token
                } else {
                    &credential.password
                }
                .clone(),
            };
            let input = serde_json::to_vec(&secret).map_err(|e| helper_error(&helper, e))?;
            run_helper(&helper, "store", &input)?;
            self.entry(server, Value::Object(Map::new()))?;
            return Ok(false);
        }
        let mut entry = Map::new();
        let plain = format!("{}:{}", credential.username, credential.password);
        if credential.identity_token.is_empty() {
            entry.insert("auth".into(), STANDARD.encode(plain).into());
        } else {
            let user = format!("{}:", credential.username);
            entry.insert("auth".into(), STANDARD.encode(user).into());
            entry.insert(
                "identitytoken".into(),
                credential.identity_token.clone().into(),
            );
        }
        self.entry(server, Value::Object(entry))?;
        Ok(true)
    }

    fn entry(&mut self, server: &str, entry: Value) -> Result<(), RegistryError> {
        let auths = self
            .document
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()));
        if !auths.is_object() {
            *auths = Value::Object(Map::new());
        }
        auths[server] = entry;
        self.save()
    }

    /// Forgets credentials; tells whether there were any.
    ///
    /// # Errors
    /// The helper or the file refuses.
    pub fn erase(&mut self, server: &str) -> Result<bool, RegistryError> {
        let mut had = false;
        if let Some(helper) = self.helper(server).map(str::to_owned) {
            run_helper(&helper, "erase", server.as_bytes())?;
            had = true;
        }
        if let Some(auths) = self
            .document
            .get_mut("auths")
            .and_then(Value::as_object_mut)
            && auths.remove(server).is_some()
        {
            self.save()?;
            had = true;
        }
        Ok(had)
    }

    fn save(&self) -> Result<(), RegistryError> {
        let failed = |reason: String| RegistryError::Config {
            path: self.path.clone(),
            reason,
        };
        let mut text =
            serde_json::to_string_pretty(&self.document).map_err(|e| failed(e.to_string()))?;
        text.push('\n');
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let temporary = directory.join(format!(".config.json.{}", std::process::id()));
        let write = || -> io::Result<()> {
            fs::create_dir_all(directory)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // A link stays a link: its target is replaced.
            let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
            fs::rename(&temporary, target)
        };
        write().map_err(|error| {
            fs::remove_file(&temporary).ok();
            failed(error.to_string())
        })
    }
}

fn helper_error(helper: &str, reason: impl ToString) -> RegistryError {
    RegistryError::Helper {
        helper: helper.to_owned(),
        reason: reason.to_string(),
    }
}

fn helper_list(helper: &str) -> Result<Vec<String>, RegistryError> {
    let listed = run_helper(helper, "list", b"")?;
    let listed: BTreeMap<String, String> =
        serde_json::from_slice(&listed).map_err(|e| helper_error(helper, e))?;
    Ok(listed.into_keys().collect())
}

fn helper_get(helper: &str, server: &str) -> Result<Option<Credential>, RegistryError> {
    let output = match run_helper(helper, "get", server.as_bytes()) {
        Ok(output) => output,
        Err(RegistryError::Helper { reason, .. }) if reason.contains("credentials not found") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let secret: HelperSecret =
        serde_json::from_slice(&output).map_err(|e| helper_error(helper, e))?;
    let mut credential = Credential {
        server_address: server.to_owned(),
        ..Credential::default()
    };
    if secret.username == TOKEN_USER {
        credential.identity_token = secret.secret;
    } else {
        credential.username = secret.username;
        credential.password = secret.secret;
    }
    Ok(Some(credential))
}

fn run_helper(helper: &str, action: &str, input: &[u8]) -> Result<Vec<u8>, RegistryError> {
    // The name comes from a file of the user's; a path in it would run anything.
    if helper.contains('/') {
        return Err(helper_error(helper, "its name must not be a path"));
    }
    let command = Command::new(format!("docker-credential-{helper}"));
    speak(command, helper, action, input)
}

fn speak(
    mut command: Command,
    helper: &str,
    action: &str,
    input: &[u8],
) -> Result<Vec<u8>, RegistryError> {
    let mut child = command
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| helper_error(helper, e))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // It ended, or knew enough, without reading all: what it says counts.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|e| helper_error(helper, e))?,
        }
    }
    let output = child
        .wait_with_output()
        .map_err(|e| helper_error(helper, e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // Helpers put their message on standard output.
    let said = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Err(helper_error(helper, String::from_utf8_lossy(&said).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::HUB_KEY;

    #[test]
    fn stores_and_erases_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"psFormat":"x"}"#).unwrap();
        let mut config = DockerConfig::load(dir.path()).unwrap();
        let credential = Credential {
            username: "me".into(),
            password: "a:b".into(),
            ..Credential::default()
        };
        assert!(config.store("127.0.0.1:5000", &credential).unwrap());
        let again = DockerConfig::load(dir.path()).unwrap();
        let found = again.get("127.0.0.1:5000").unwrap().unwrap();
        assert_eq!(
            (found.username.as_str(), found.password.as_str()),
            ("me", "a:b")
        );
        assert_eq!(again.get("other").unwrap(), None);
        let (all, failures) = again.get_all();
        assert_eq!((all.len(), failures.len()), (1, 0));
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("config.json");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(config.erase("127.0.0.1:5000").unwrap());
        assert!(!config.erase("127.0.0.1:5000").unwrap());
        assert!(fs::read_to_string(path).unwrap().contains("psFormat"));
    }

    #[test]
    fn what_is_damaged_keeps_nobody_from_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"auths":{"bad.example":{"auth":"!!!"},"good.example":{"auth":"dTpw"}},
                       "credHelpers":{"other.example":"no-such-helper"}}"#;
        fs::write(dir.path().join("config.json"), text).unwrap();
        let config = DockerConfig::load(dir.path()).unwrap();
        assert!(config.get("bad.example").is_err());
        assert!(config.get("other.example").is_err());
        let (all, failures) = config.get_all();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["good.example"]);
        assert_eq!(failures.len(), 2);
    }

    #[test]
    fn a_helper_need_not_read_what_it_is_told() {
        let speak = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script, "helper"]);
            // More than fits into a pipe, so that it is still being written at the end.
            speak(command, "x", "get", &vec![b'x'; 1 << 20])
        };
        assert_eq!(speak("exec <&-; printf known").unwrap(), b"known");
        let error = speak("exec <&-; printf 'locked: unlock it'; exit 1").unwrap_err();
        let expected = "credential helper docker-credential-x: locked: unlock it";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn finds_entries_under_their_old_names() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"auths":{"https://reg.example.org/v2/":{"auth":"dTpw"},"docker.io":{"auth":"dTpw"}}}"#;
        fs::write(dir.path().join("config.json"), text).unwrap();
        let config = DockerConfig::load(dir.path()).unwrap();
        for server in ["reg.example.org", HUB_KEY] {
            assert_eq!(
                config.get(server).unwrap().unwrap().username,
                "u",
                "{server}"
            );
        }
        fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(DockerConfig::load(dir.path()).is_err());
    }
}
