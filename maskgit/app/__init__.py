"""A web page: paint over a picture, see it filled. `python -m maskgit.app`, with the extra [app].

From the outside in: `door` says who may come in and with how much, `page` what there is to see, `actions` what its
buttons do, `work` that one thing is done at a time, `given` what people hand in. Nothing that belongs to somebody is
kept in a module or an object here: pictures are in the browser, and as files under names that can't be guessed.

`page` and `actions` need gradio, the others don't.
"""
