"""What a layer computes around the op, in Triton; sums are taken in float32."""
