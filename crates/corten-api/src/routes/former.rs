//! Fields that images had in earlier versions of the API, for clients that ask for these.

use axum::Json;
use axum::response::IntoResponse;
use corten_engine::models::{ImageInspect, ImageSummary};
use serde_json::{Value, json};

use super::Answer;
use crate::ordered::ordered;
use crate::version::ClientVersion;
use crate::whole::{self, complete, value};

/// `GET /images/json`.
pub(super) fn images(images: Vec<ImageSummary>, version: ClientVersion) -> Answer {
    if version.at_least(1, 44) {
        return Ok(Json(images).into_response());
    }
    let mut document = value(&images)?;
    for image in document.as_array_mut().into_iter().flatten() {
        image["VirtualSize"] = image["Size"].clone();
    }
    Ok(Json(document).into_response())
}

/// `GET /images/NAME/json`.
pub(super) fn image(image: ImageInspect, version: ClientVersion) -> Answer {
    let mut document = value(&image)?;
    complete(&mut document, &whole::image());
    if version.at_least(1, 50) {
        return Ok(ordered(document)?.into_response());
    }
    if !version.at_least(1, 44) {
        sized_and_dated(&mut document);
    }
    complete(&mut document["Config"], &config_fields());
    Ok(ordered(document)?.into_response())
}

/// Up to 1.43 images had two sizes, and a date whether it was known or not.
fn sized_and_dated(image: &mut Value) {
    image["VirtualSize"] = image["Size"].clone();
    if image["Created"].as_str().is_none_or(str::is_empty) {
        image["Created"] = "0001-01-01T00:00:00Z".into();
    }
}

/// Up to 1.49 an image's configuration had fields of a container's, set or not.
fn config_fields() -> Value {
    json!({
        "AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Cmd": null,
        "Domainname": "", "Entrypoint": null, "Env": null, "Hostname": "", "Image": "",
        "Labels": null, "OnBuild": null, "OpenStdin": false, "StdinOnce": false, "Tty": false,
        "User": "", "Volumes": null, "WorkingDir": "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stays() {
        let mut config = json!({"Cmd": ["sh"], "User": "me"});
        complete(&mut config, &config_fields());
        assert_eq!(
            (&config["Cmd"], &config["User"]),
            (&json!(["sh"]), &json!("me"))
        );
        assert_eq!(
            (&config["Tty"], &config["Image"]),
            (&json!(false), &json!(""))
        );
        assert!(config.as_object().unwrap().contains_key("Volumes"));
        let mut none = Value::Null;
        complete(&mut none, &config_fields());
        assert_eq!(none, Value::Null);

        let mut image = json!({"Size": 5});
        sized_and_dated(&mut image);
        let expected = json!({"Size": 5, "VirtualSize": 5, "Created": "0001-01-01T00:00:00Z"});
        assert_eq!(image, expected);
        let mut dated = json!({"Size": 5, "Created": "2024-01-02T03:04:05Z"});
        sized_and_dated(&mut dated);
        assert_eq!(dated["Created"], "2024-01-02T03:04:05Z");
    }
}
