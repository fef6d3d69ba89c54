//! Routes that can be listed: axum's router does not say what it answers to, and neither the test that
//! holds every route against every role nor the document of the API may miss one.
//!
//! Invariant: a route is added and listed by one call, so that the list is the router's own; so are
//! the signatures of its handlers.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{self, MethodRouter};

use super::signature::{Described, Schemas, Signature};
use crate::state::App;

/// A method and a path, as the router has it: `/api/v1/users/{user}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub method: &'static str,
    pub path: String,
}

/// What is answered there.
#[derive(Debug, Clone)]
pub struct Operation {
    pub listed: Listed,
    /// The function, with its module.
    pub handler: &'static str,
    /// What its types say; nothing where one handler takes apart many paths.
    pub signature: Option<fn(&mut Schemas) -> Signature>,
}

/// Axum's router, with the list of its routes.
#[derive(Debug, Default)]
pub struct Routes {
    router: Router<App>,
    list: Vec<Operation>,
}

/// The handlers of one path. A `GET` answers `HEAD`, too.
#[derive(Debug)]
pub struct Methods {
    router: MethodRouter<App>,
    list: Vec<Handled>,
}

#[derive(Debug)]
struct Handled {
    method: &'static str,
    handler: &'static str,
    signature: fn(&mut Schemas) -> Signature,
}

impl Handled {
    fn by<H: Described<A>, A>(method: &'static str, _: &H) -> Self {
        Self { method, handler: std::any::type_name::<H>(), signature: H::signature }
    }
}

macro_rules! methods {
    ($($name:ident $method:ident)*) => {
        $(
            pub fn $name<H, T, A>(handler: H) -> Methods
            where
                H: Handler<T, App> + Described<A>,
                T: 'static,
            {
                let list = vec![Handled::by(stringify!($method), &handler)];
                Methods { router: routing::$name(handler), list }
            }
        )*

        impl Methods {
            $(
                #[must_use]
                pub fn $name<H, T, A>(mut self, handler: H) -> Self
                where
                    H: Handler<T, App> + Described<A>,
                    T: 'static,
                {
                    self.list.push(Handled::by(stringify!($method), &handler));
                    Self { router: self.router.$name(handler), ..self }
                }
            )*
        }
    };
}

methods! { get GET post POST put PUT patch PATCH delete DELETE }

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn route(mut self, path: &str, methods: Methods) -> Self {
        let operation = |Handled { method, handler, signature }| Operation {
            listed: Listed { method, path: path.to_owned() },
            handler,
            signature: Some(signature),
        };
        self.list.extend(methods.list.into_iter().map(operation));
        Self { router: self.router.route(path, methods.router), ..self }
    }

    /// A path whose handler finds the method and the rest of the path out itself; `listed` is what
    /// it knows.
    #[must_use]
    pub fn dispatched<H: Handler<T, App>, T: 'static>(
        mut self,
        path: &str,
        handler: H,
        listed: impl IntoIterator<Item = (Method, &'static str)>,
    ) -> Self {
        let listed = listed.into_iter().map(|(method, path)| {
            let known = ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter();
            let method = known.into_iter().find(|known| method == *known).unwrap_or("OTHER");
            let listed = Listed { method, path: path.to_owned() };
            Operation { listed, handler: std::any::type_name::<H>(), signature: None }
        });
        self.list.extend(listed);
        Self { router: self.router.route(path, routing::any(handler)), ..self }
    }

    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.list.extend(other.list);
        Self { router: self.router.merge(other.router), ..self }
    }

    #[must_use]
    pub fn body_limit(self, limit: DefaultBodyLimit) -> Self {
        Self { router: self.router.layer(limit), ..self }
    }

    /// What there is, sorted.
    pub fn list(self) -> Vec<Listed> {
        let mut list: Vec<Listed> =
            self.list.into_iter().map(|operation| operation.listed).collect();
        list.sort();
        list
    }

    /// The same with what answers there.
    pub fn into_operations(mut self) -> Vec<Operation> {
        self.list.sort_by(|one, other| one.listed.cmp(&other.listed));
        self.list
    }

    pub fn into_router(self) -> Router<App> {
        self.router
    }
}
