"""Each kind of fault does its harm when it is entered and takes it back when it is left."""
