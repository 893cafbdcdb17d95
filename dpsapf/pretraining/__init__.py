"""Makes the packaged public model and the feature network; nothing imports it.

In: fonts, photographs and shapes of other packages (`public_data`).
Out: the folder of public-mini with its card. Open `pretrain` first.
"""
