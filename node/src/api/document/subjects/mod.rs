//! The operations by subject, in the order in which a reader wants them.

mod access;
mod deployments;
mod images;
mod people;
mod projects;
mod registry;
mod upkeep;
mod versions;

use super::note::Subject;

pub fn all() -> Vec<Subject> {
    vec![
        access::login(),
        access::own(),
        images::images(),
        images::rights(),
        versions::versions(),
        versions::scans(),
        versions::uploads(),
        versions::tags(),
        versions::instances(),
        projects::projects(),
        projects::robots(),
        projects::retention(),
        people::organizations(),
        people::users(),
        deployments::deployments(),
        deployments::warm_ups(),
        deployments::agents(),
        deployments::cluster(),
        upkeep::quotas(),
        upkeep::audit(),
        upkeep::storage(),
        upkeep::upstreams(),
        upkeep::node(),
        registry::registry(),
        images::compatible(),
    ]
}
