//! Points around every write to the API server: a layer of its client, which no request can go around.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, header::CONTENT_TYPE};
use tower::{Layer, Service};

use crate::{ARMED, Moment};

/// Puts a point before each request that changes something, and one after its answer has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct ApiLayer;

impl<S> Layer<S> for ApiLayer {
    type Service = ApiPoints<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ApiPoints { inner }
    }
}

/// See [`ApiLayer`].
#[derive(Debug, Clone)]
pub struct ApiPoints<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for ApiPoints<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let point = ARMED.get().and_then(|armed| Some((armed, name(&request)?)));
        if let Some((armed, name)) = &point {
            armed.reach(&format!("api:{name}:{}", Moment::Before));
        }
        let answer = self.inner.call(request);
        let Some((armed, name)) = point else { return Box::pin(answer) };
        Box::pin(async move {
            let answer = answer.await;
            armed.reach(&format!("api:{name}:{}", Moment::After));
            answer
        })
    }
}

/// What a request writes, as in `APPLY virtualmachines/status`; none for one that only reads.
fn name<B>(request: &Request<B>) -> Option<String> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let verb = match *request.method() {
        Method::GET | Method::HEAD => return None,
        Method::PATCH if kind.starts_with("application/apply-patch") => "APPLY",
        ref other => other.as_str(),
    };
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    // After api/VERSION or apis/GROUP/VERSION, and namespaces/NAMESPACE if there is one.
    let rest = path.get(if path.first() == Some(&"api") { 2 } else { 3 }..).unwrap_or_default();
    let namespaced = rest.len() > 2 && rest.first() == Some(&"namespaces");
    let rest = if namespaced { rest.get(2..).unwrap_or_default() } else { rest };
    let resource = rest.first().copied().unwrap_or_default();
    let what = rest.get(2).map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}"));
    Some(format!("{verb} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(method: &str, path: &str, kind: &str) -> Option<String> {
        name(&Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind).body(()).unwrap())
    }

    #[test]
    fn writes_are_named_by_what_they_change() {
        let vm = "/apis/vireo.dev/v1alpha1/namespaces/default/virtualmachines/web";
        let apply = "application/apply-patch+yaml";
        assert_eq!(
            named("PATCH", &format!("{vm}/status?force=true"), apply).as_deref(),
            Some("APPLY virtualmachines/status")
        );
        assert_eq!(
            named("PATCH", vm, "application/merge-patch+json").as_deref(),
            Some("PATCH virtualmachines")
        );
        assert_eq!(named("GET", vm, ""), None);
        assert_eq!(
            named("POST", "/api/v1/namespaces/x/serviceaccounts/y/token", "application/json").as_deref(),
            Some("POST serviceaccounts/token")
        );
        assert_eq!(
            named("PATCH", "/apis/vireo.dev/v1alpha1/hosts/h/status", apply).as_deref(),
            Some("APPLY hosts/status")
        );
    }
}
