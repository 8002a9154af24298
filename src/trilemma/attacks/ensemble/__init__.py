"""How AutoAttack and ``screen`` run several attacks on one set of images and count what each of them costs.

The **pool** (``pool.py``) holds the images and one verdict per image: robust so far, misclassified from the start, or
broken by attack k. It runs the attacks in order, batch by batch, each only on the images that are still robust, because
most images are broken by the first and cheapest attack. The **pool file** (``pool_file.py``) saves that state between
batches and on an interruption, so that a long evaluation resumes with the same verdicts. An attack reaches the network
only through an **oracle** (``oracle.py``): it returns logits and input gradients, counts forward and backward passes
per image, limits the batch size, and calls a hook before each pass that reports progress or stops the attack. The
network behind the oracle is usually a **fast copy** (``classifier/fast_copy.py``) of the classifier: traced, BatchNorm
folded, and equal to the original up to rounding. It is safe to call from several **threads** (``threads.py``), which
each attack a part of the batch, as the operations of a small network are too short to occupy all cores. Speed never
decides a verdict: an image counts as broken only if the original classifier, in float32, misclassifies it inside the
ball and [0, 1]; where the copy and the original disagree, the pool repeats the attack on the original.
"""
