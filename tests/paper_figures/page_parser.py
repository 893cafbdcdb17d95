"""What an HTML page is made of: for tests of the report."""

import re
from html.parser import HTMLParser

FETCHED = {"src", "srcset", "data", "poster", "action", "formaction", "background", "cite", "manifest", "ping", "code", "archive"}
EMBEDDED = ("data:", "#", "blob:")
IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]*)|@import\s+['\"]?([^'\";]*)")


class Page(HTMLParser):
    """Elements of a page as (tag, attributes, text of its own), in their order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("img", "meta", "link", "br", "hr", "input", "col"):
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def all(self, *tags):
        return [(tag, attributes, " ".join("".join(text).split())) for tag, attributes, text in self.elements if tag in tags]

    def texts(self, *tags):
        return [text for *_, text in self.all(*tags)]

    @property
    def text(self):
        return " ".join(self.texts("body"))

    def fetched(self):
        """Addresses that a browser would load by itself, but those that lie in the page."""
        found = []
        for tag, attributes, parts in self.elements:
            found += [attributes[name] for name in FETCHED & attributes.keys()]
            found += [attributes["href"]] if tag in ("link", "base", "use", "image", "feimage") and "href" in attributes else []
            found += [attributes["xlink:href"]] if "xlink:href" in attributes else []
            found += [attributes["content"]] if attributes.get("http-equiv", "").lower() == "refresh" else []
            css = [attributes.get("style") or "", *(parts if tag == "style" else ())]
            found += [address for text in css for pair in IN_CSS.findall(text) for address in pair if address]
        return [address for address in found if address and not address.startswith(EMBEDDED)]
