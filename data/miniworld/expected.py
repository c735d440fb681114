"""The recorded hashes of the world of seed 0, part by part (see `write.Writer.digest`)."""

EXPECTED: dict[str, str] = {
    "calibration": "682b9ad61c051eb88ec63ed992572dc625a16990bb66f9ac6039ac46d34545a6",
    "pretrain": "07efdd19cc300a9c9a732c550fbf49a85ce85c9eb3533cb46da981492ed70f2b",
    "regions": "4ef0285614dc5eecd5743ab8f2576f8150854353b7a600547c06f8c1d49c6b2d",
    "itr": "c8975c0edd36f6c08d89dd9d9502398c18fd559fe5d1f3cd775afa7750c608e9",
    "ic": "dcae8974defc1bfcb3b96dec121bc0dc4eb0206012c9637d68bbfbad9459ffd3",
    "vqa": "eaf9b07f52e7f7001d91b587eccc130438a6312b04d9c5d32991e330887fdfd0",
    "imagenet": "f0f0541b4d7bb64e465d30b8c245f02fe4ead9bf0d4d971bc5c928740e5deb7e",
    "flowers102": "00283a08cf14ce976179f915fbd726eb4d0ea8b00a209776035ba821da4c187c",
}
