"""The sides and channels of a network's maps are those of its paper."""

from PIL import Image

from analysis.shape import draw_shapes, list_maps


def test_alexnets_maps(summary_of):
    # Krizhevsky 2012, section 3.5, with images of 227 pixels.
    assert [(each.depth, each.side, each.channels) for each in list_maps(summary_of("alexnet"))] == [
        (0, 227, 3),
        *((1, 55, 96), (1, 27, 96), (2, 27, 256), (2, 13, 256)),
        *((3, 13, 384), (4, 13, 384), (5, 13, 256), (5, 6, 256)),
        *((6, 1, 4096), (7, 1, 4096), (8, 1, 1000)),
    ]


def test_the_last_layer_is_as_deep_as_the_networks_name_says(summary_of):
    # Without the four projections of ResNet-50's shortcuts.
    for name, depth in {"lenet5": 5, "vgg16": 16, "densenet121": 121, "resnet50": 50 + 4}.items():
        assert list_maps(summary_of(name))[-1].depth == depth


def test_joints_hold_the_features_of_all_branches(summary_of):
    # Szegedy 2014, Table 1, output sizes of the Inception modules; Huang 2016: 64 + 6 x 32 features and so on.
    widths = [each.channels for each in list_maps(summary_of("googlenet")) if each.kind == "concatenation"]
    assert widths == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    widths = [each.channels for each in list_maps(summary_of("densenet121")) if each.kind == "concatenation"]
    assert widths[:6] == [96, 128, 160, 192, 224, 256] and widths[-1] == 1024


def test_a_picture_of_several_and_of_one(summary_of, tmp_path):
    for count, names in ((1, ["vgg16"]), (4, ["lenet5", "alexnet", "googlenet", "resnet50"])):
        draw_shapes([summary_of(name) for name in names], tmp_path / f"{count}.png")
    one, four = (Image.open(tmp_path / f"{count}.png").size for count in (1, 4))
    assert four[0] > one[0] > 400 and four[1] > one[1] > 200
