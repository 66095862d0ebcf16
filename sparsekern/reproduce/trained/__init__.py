"""The papers' experiments: networks trained anew, several seeds each, the paper's accuracy beside ours."""
