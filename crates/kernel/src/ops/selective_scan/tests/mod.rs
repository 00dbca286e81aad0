mod arguments;
mod golden;
mod identities;
mod kernels;
mod support;
