mod blocks;
mod orders;
mod properties;
mod revoke;
mod server;
mod session;
mod wanted;
mod world;
