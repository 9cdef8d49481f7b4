//! `--secret` and `--ssh`: what steps are lent, and how it is named to the engine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_ssh_agent::{Keys, Served};

use crate::error::{CliError, Result, reason};

/// Largest secret, bytes (BuildKit's).
const LARGEST: u64 = 500 << 10;

/// Reads the secrets: by id, encoded.
pub(super) fn secrets(
    flags: &[&str],
    environment: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for flag in flags {
        let (id, bytes) = secret(flag, &environment)?;
        found.insert(id, STANDARD.encode(bytes));
    }
    Ok(found)
}

fn secret(flag: &str, environment: &impl Fn(&str) -> Option<Vec<u8>>) -> Result<(String, Vec<u8>)> {
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in flag.split(',') {
        let Some((key, value)) = field.split_once('=') else {
            return Err(invalid(
                flag,
                &format!("invalid field '{field}' must be a key=value pair"),
            ));
        };
        let value = value.to_owned();
        match key.to_lowercase().as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
            "type" => {
                return Err(invalid(flag, &format!("unsupported secret type {value:?}")));
            }
            key => {
                return Err(invalid(
                    flag,
                    &format!("unexpected key '{key}' in '{field}'"),
                ));
            }
        }
    }
    let id = id.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| invalid(flag, "it has no id"))?;
    // With `type=env` the source is a variable.
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = file.take();
    }
    if file.is_some() && variable.is_some() {
        return Err(invalid(flag, "it is either of a file or of a variable"));
    }
    let bytes = if let Some(variable) = variable {
        environment(&variable)
            .ok_or_else(|| invalid(flag, &format!("environment variable {variable} is not set")))?
    } else if let Some(file) = file {
        read(Path::new(&file))?
    } else if let Some(value) = environment(&id) {
        value
    } else {
        read(Path::new(&id))?
    };
    if bytes.len() as u64 > LARGEST {
        return Err(invalid(
            flag,
            &format!("it is larger than {} KiB", LARGEST >> 10),
        ));
    }
    Ok((id, bytes))
}

/// However long it says that it is, and whatever comes of it meanwhile.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let path = path.display();
        CliError::message(format!("failed to stat {path}: {}", reason(&error)))
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(CliError::message(format!(
            "secret {} is larger than {} KiB",
            path.display(),
            LARGEST >> 10
        )));
    }
    Ok(bytes)
}

fn invalid(flag: &str, why: &str) -> CliError {
    CliError::message(format!("invalid argument \"{flag}\" for --secret: {why}"))
}

/// The agents that `--ssh` lends.
#[derive(Debug, Default)]
pub(super) struct Agents {
    /// Their sockets, by id.
    sockets: BTreeMap<String, PathBuf>,
    /// Those of keys in files.
    served: Vec<Served>,
}

impl Agents {
    /// Reads the flags: of each id a socket, or files of keys.
    pub(super) fn new(flags: &[&str], here: &Path, default: Option<PathBuf>) -> Result<Self> {
        let mut agents = Self::default();
        for flag in flags {
            let wrong = |why: String| {
                CliError::message(format!("invalid argument \"{flag}\" for --ssh: {why}"))
            };
            let (id, paths) = match flag.split_once('=') {
                Some((id, paths)) => (id, paths.split(',').map(|p| here.join(p)).collect()),
                None => (*flag, Vec::from_iter(default.clone())),
            };
            if paths.is_empty() {
                return Err(wrong("SSH_AUTH_SOCK is not set".to_owned()));
            }
            let socket = agents.socket(paths).map_err(wrong)?;
            if agents.sockets.insert(id.to_owned(), socket).is_some() {
                return Err(wrong("the id is given twice".to_owned()));
            }
        }
        Ok(agents)
    }

    /// The one socket that these are, or one that serves these keys.
    fn socket(&mut self, paths: Vec<PathBuf>) -> std::result::Result<PathBuf, String> {
        let mut keys = None;
        let mut socket = None;
        for path in paths {
            if socket.is_some() {
                return Err("only single socket allowed".to_owned());
            }
            let about = std::fs::metadata(&path)
                .map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
            use std::os::unix::fs::FileTypeExt as _;
            if about.file_type().is_socket() {
                socket = Some(path);
            } else if about.is_file() {
                let keys = keys.get_or_insert_with(Keys::default);
                keys.add(&path).map_err(|error| error.to_string())?;
            } else {
                return Err(format!("{} is neither a key nor a socket", path.display()));
            }
        }
        match (socket, keys) {
            (Some(_), Some(_)) => Err("invalid combination of keys and sockets".to_owned()),
            (Some(socket), None) => Ok(socket),
            (None, keys) => {
                let served =
                    Served::new(keys.unwrap_or_default()).map_err(|error| error.to_string())?;
                let path = served.path();
                self.served.push(served);
                Ok(path)
            }
        }
    }

    /// As the engine in this process is told of them, if there are any.
    pub(super) fn header(&self) -> Option<String> {
        (!self.sockets.is_empty()).then(|| serde_json::json!(self.sockets).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(flag: &str) -> std::result::Result<String, String> {
        let environment = |name: &str| (name == "TOKEN").then(|| b"value".to_vec());
        let found = secrets(&[flag], environment).map_err(|e| e.to_string())?;
        let (id, text) = found.into_iter().next().unwrap();
        let text = String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
        Ok(format!("{id}={text}"))
    }

    #[test]
    fn files_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "in the file").unwrap();
        let path = path.display();
        assert_eq!(one(&format!("id=a,src={path}")).unwrap(), "a=in the file");
        assert_eq!(one("id=b,env=TOKEN").unwrap(), "b=value");
        assert_eq!(one("type=env,id=b,src=TOKEN").unwrap(), "b=value");
        assert_eq!(one("id=TOKEN").unwrap(), "TOKEN=value");
        for (flag, why) in [
            ("src=x", "it has no id"),
            ("id=a,env=NO", "environment variable NO is not set"),
            ("id=a,src=x,env=TOKEN", "either of a file or of a variable"),
            ("id=a,color=red", "unexpected key 'color'"),
            ("id", "must be a key=value pair"),
            ("id=a,src=/no/such", "failed to stat /no/such: no such file"),
            ("id=a,src=/dev/zero", "/dev/zero is larger than 500 KiB"),
        ] {
            let error = one(flag).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn sockets_of_agents() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let found = |flags: &[&str], default: Option<PathBuf>| {
            let agents = Agents::new(flags, dir.path(), default).map_err(|e| e.to_string());
            agents.map(|agents| agents.sockets)
        };
        assert_eq!(found(&["mine=agent"], None).unwrap()["mine"], socket);
        let default = found(&["default"], Some(socket.clone())).unwrap();
        assert_eq!(default["default"], socket);
        std::fs::write(dir.path().join("key"), "").unwrap();
        for (flags, why) in [
            (&["default"][..], "SSH_AUTH_SOCK"),
            (&["k=key"], "key: ssh: no key found"),
            (&["k=agent,agent"], "only single socket allowed"),
            (&["k=none"], "none: no such file"),
            (&["k=."], "is neither a key nor a socket"),
            (&["k=agent", "k=agent"], "the id is given twice"),
        ] {
            let error = found(flags, None).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
