//! Image and reference containers: npy, npz, HDF5, image zips and folders.
