"""Networks that turn an image into feature maps of strides 4, 8, 16 and 32."""
