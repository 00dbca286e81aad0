mod golden;
mod identities;
mod kernels;
