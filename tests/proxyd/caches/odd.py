"""Paths with every odd byte a URL may hold. Each is a key of its own; none may be touched on the way."""

ODD_PATHS = (
    "/plain",
    "/a%2Fb",
    "/a%2fb",
    "/a/b",
    "//double//slash",
    "/dots/../up/./here",
    "/.",
    "/semi;colon;v=1/x;y",
    "/q?",
    "/q?b=2&a=1",
    "/q?a=1&b=2",
    "/q?x=%2F+%20",
    "/q?u=http://other.example/",
    "/caf%C3%A9",
    "/%",
    "/%zz%0",
    "/quote'\"tick`",
    "/brackets[1]{2}(3)<4>",
    "/regex.*+?^$|end",
    "/back\\slash\\1",
    "/pipe|and&&or||not!",
    "/at@colon:comma,equals=",
    "/tilde~star*hash%23",
    "/?only-query",
    "/long/" + "x" * 2000,
    "/long?" + "q=%41&" * 300,
)

# What an address of 8 KB adds: more than some default limits.
LONGEST = "/longest/" + "y" * 8000
