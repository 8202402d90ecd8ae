"""Published runs and promoted models: uploading them to the bucket and browsing them."""
