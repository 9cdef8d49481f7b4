//! Logging in, and proving who one is.

use corten_registry::RegistryError;
use http::StatusCode;

use crate::harness::{TestStore, client, credential, registry};
use crate::stub::{Inner, Stub};

#[tokio::test(flavor = "multi_thread")]
async fn basic() {
    let from = TestStore::new();
    let htpasswd = from.folder.path().join("htpasswd");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&htpasswd, format!("me:{hash}\n")).unwrap();
    let address = registry(from.folder.path(), Some(&htpasswd)).await;
    let name = format!("{address}/app");
    from.image(&name, &[b"private"]);
    let client = client("");
    let (right, wrong) = (credential("me", "secret"), credential("me", "guess"));

    for server in [address.clone(), format!("http://{address}/v2/")] {
        let outcome = client.login(&server, &right).await.unwrap();
        assert_eq!(outcome.status, "Login Succeeded");
        assert_eq!(outcome.identity_token, None);
    }
    let error = client.login(&address, &wrong).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized(_)), "{error}");
    assert!(
        error.to_string().contains("incorrect username or password"),
        "{error}"
    );

    let error = from.push(&client, &name, None).await.unwrap_err();
    assert!(
        error.to_string().contains("no basic auth credentials"),
        "{error}"
    );
    let error = from.push(&client, &name, Some(&wrong)).await.unwrap_err();
    assert!(matches!(error, RegistryError::PushDenied(_)), "{error}");
    from.push(&client, &name, Some(&right)).await.unwrap();

    let to = TestStore::new();
    let error = to.pull(&client, &name, Some(&wrong)).await.unwrap_err();
    assert!(matches!(error, RegistryError::PullDenied(_)), "{error}");
    to.pull(&client, &name, Some(&right)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer() {
    let stub = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let (from, to) = (TestStore::new(), TestStore::new());
    let name = format!("{}/team/app", stub.address());
    let id = from.image(&name, &[b"private"]);
    let client = client("");
    let (right, wrong) = (credential("me", "secret"), credential("me", "guess"));

    client.login(stub.address(), &right).await.unwrap();
    let error = client.login(stub.address(), &wrong).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized(_)), "{error}");

    stub.seen.lock().unwrap().clear();
    from.push(&client, &name, Some(&right)).await.unwrap();
    let tokens = |scope: &str| {
        let seen = stub.seen();
        let asked = seen.iter().filter(|s| s.path.starts_with("/token"));
        asked
            .filter(|s| {
                s.path
                    .replace("%3A", ":")
                    .replace("%2F", "/")
                    .replace("%2C", ",")
                    .contains(scope)
            })
            .count()
    };
    assert!(tokens("service=stub") > 0);
    assert!(tokens("scope=repository:team/app:pull,push") > 0);
    let (pulled, _) = to.pull(&client, &name, Some(&right)).await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(
        tokens("scope=repository:team/app:pull&"),
        1,
        "one token serves the whole pull"
    );
    for refused in [None, Some(&wrong)] {
        let to = TestStore::new();
        let error = to.pull(&client, &name, refused).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized(_)), "{error}");
    }
    // The password goes to the token server only.
    for seen in stub.seen() {
        let basic = seen.authorization.is_some_and(|a| a.starts_with("Basic"));
        assert_eq!(
            basic,
            basic && seen.path.starts_with("/token"),
            "{}",
            seen.path
        );
    }
}

/// A directory behind a token server counts what it is shown, whatever that server makes of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_tries_a_password_once() {
    let stub = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let (client, wrong) = (client(""), credential("me", "guess"));
    let fails = (StatusCode::INTERNAL_SERVER_ERROR, "");
    *stub.busy_tokens.lock().unwrap() = vec![fails; 8];
    let error = client.login(stub.address(), &wrong).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::TokenServer { .. }),
        "{error}"
    );
    let seen = stub.seen();
    let asked = seen.iter().filter(|seen| seen.path.starts_with("/token"));
    assert_eq!(asked.count(), 1, "{seen:?}");
}

/// It has been asked often enough already when it is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_is_not_asked_for_each_attempt_of_a_download() {
    let stub = Stub::with(Inner {
        account: Some(("me", "secret")),
        ..Inner::default()
    })
    .await;
    let (from, to) = (TestStore::new(), TestStore::new());
    let name = format!("{}/app", stub.address());
    let id = from.image(&name, &[b"layer"]);
    let layers = stub.publish(&from, &id, "app");
    let (client, right) = (client(""), credential("me", "secret"));
    *stub.spent_at.lock().unwrap() = Some(layers[0].to_string());
    let error = to.pull(&client, &name, Some(&right)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::TokenServer { .. }),
        "{error}"
    );
    assert_eq!(stub.busy_tokens.lock().unwrap().len(), 64 - 4);
}
